"""What a node's own API says, at :10250. Kubernetes publishes no OpenAPI of it: these are the paths of pkg/kubelet/server/server.go and
the Go types of k8s.io/kubelet, pkg/apis/stats/v1alpha1/types.go."""
from unpublished import META, TEXT, operation, ref, struct

COUNT = {"type": "integer", "format": "uint64"}
TIME = ref(META + "Time")
POD = "/{namespace}/{pod}"


def counts(*names):
    return dict.fromkeys(names, COUNT)


def stats(fields, *required):
    return struct({"time": TIME, **fields}, ["time", *required])


PRESSURE = struct({"total": COUNT, "avg10": {"type": "number"}, "avg60": {"type": "number"}, "avg300": {"type": "number"}}, ["total", "avg10", "avg60", "avg300"])
PSI = struct({"full": PRESSURE, "some": PRESSURE}, ["full", "some"])
CPU = stats({**counts("usageNanoCores", "usageCoreNanoSeconds"), "psi": PSI})
MEMORY = stats({**counts("availableBytes", "usageBytes", "workingSetBytes", "rssBytes", "pageFaults", "majorPageFaults"), "psi": PSI})
IO = stats({"psi": PSI})
SWAP = stats(counts("swapAvailableBytes", "swapUsageBytes"))
FILES = counts("availableBytes", "capacityBytes", "usedBytes", "inodesFree", "inodes", "inodesUsed")
FS = stats(FILES)
INTERFACE = {"name": TEXT, **counts("rxBytes", "rxErrors", "txBytes", "txErrors")}
NETWORK = stats({**INTERFACE, "interfaces": {"type": "array", "items": struct(INTERFACE, ["name"])}}, "name")
VOLUME = stats({**FILES, "name": TEXT, "pvcRef": struct({"name": TEXT, "namespace": TEXT}, ["name", "namespace"]),
                "volumeHealthStats": struct({"abnormal": {"type": "boolean"}})}, "name")
USE = {"startTime": TIME, "cpu": CPU, "memory": MEMORY, "io": IO, "swap": SWAP}
CONTAINER = struct({"name": TEXT, **USE, "rootfs": FS, "logs": FS}, ["name", "startTime"])
CONTAINERS = {"type": "array", "items": CONTAINER}
PODS = struct({
    "podRef": struct({"name": TEXT, "namespace": TEXT, "uid": TEXT}, ["name", "namespace", "uid"]), **USE, "containers": CONTAINERS, "network": NETWORK,
    "volume": {"type": "array", "items": VOLUME}, "ephemeral-storage": FS, "process_stats": struct({"process_count": COUNT}),
}, ["podRef", "startTime", "containers"])
NODE = struct({
    "nodeName": TEXT, "systemContainers": CONTAINERS, **USE, "network": NETWORK, "fs": FS, "runtime": struct({"imageFs": FS, "containerFs": FS}),
    "rlimit": stats({"maxpid": COUNT, "curproc": COUNT}),
}, ["nodeName", "startTime"])
SUMMARY = "io.k8s.kubelet.pkg.apis.stats.v1alpha1.Summary"
CONFIG = "io.k8s.kubelet.pkg.server.Config"
DEFINITIONS = {
    SUMMARY: struct({"node": NODE, "pods": {"type": "array", "items": PODS}}, ["node", "pods"]),
    CONFIG: struct({"kubeletconfig": {"type": "object"}}, ["kubeletconfig"]),
}
LOG = {"container": "str", "tailLines": "int", "sinceSeconds": "int", "sinceTime": "str", "limitBytes": "int", "follow": "bool", "previous": "bool",
       "timestamps": "bool", "stream": "str"}
STREAM = operation("str", input="bool", output="bool", error="bool", tty="bool", command="str")
PATHS = {
    "/healthz": operation("str"),
    "/pods": operation("V1PodList"),
    "/runningpods": operation("V1PodList"),
    "/stats/summary": operation(SUMMARY, only_cpu_and_memory="bool"),
    "/configz": operation(CONFIG),
    **{path: operation("str") for path in ("/metrics", "/metrics/cadvisor", "/metrics/resource", "/metrics/probes")},
    f"/containerLogs{POD}/{{container}}": operation("str", **LOG),
    **{f"/{verb}{POD}{uid}/{{container}}": {**STREAM, "post": STREAM["get"]} for verb in ("exec", "attach") for uid in ("", "/{uid}")},
    **{f"/portForward{POD}{uid}": {**operation("str", port="int"), "post": operation("str")["get"]} for uid in ("", "/{uid}")},
}
