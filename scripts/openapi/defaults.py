"""What API servers fill in, so that every object has it that they give out: pkg/apis/*/v1/defaults.go of Kubernetes, and what its
registries set. Clients rely on it: kubectl ends with a nil pointer where some of it is missing."""

PROBE = ["timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold", "httpGet.path", "httpGet.scheme"]
CONTAINER = [
    "imagePullPolicy", "terminationMessagePath", "terminationMessagePolicy", "ports[].protocol", "env[].valueFrom.fieldRef.apiVersion",
    *(f"{probe}.{field}" for probe in ("livenessProbe", "readinessProbe", "startupProbe") for field in PROBE),
]
VOLUME = [
    "configMap.defaultMode", "secret.defaultMode", "projected.defaultMode", "downwardAPI.defaultMode", "hostPath.type",
    "downwardAPI.items[].fieldRef.apiVersion", "projected.sources[].serviceAccountToken.expirationSeconds",
    "projected.sources[].downwardAPI.items[].fieldRef.apiVersion",
]
DEFAULTS = {
    "Endpoints": ["subsets[].ports[].protocol"],
    "EndpointSlice": ["ports[].name", "ports[].protocol"],
    "Namespace": ["metadata.labels", "spec.finalizers", "status.phase"],
    "NetworkPolicy": ["spec.policyTypes", "spec.ingress[].ports[].protocol", "spec.egress[].ports[].protocol"],
    "PersistentVolume": ["spec.persistentVolumeReclaimPolicy", "spec.volumeMode", "spec.hostPath.type", "status.phase"],
    "PersistentVolumeClaim": ["spec.volumeMode", "status.phase"],
    "Pod": [
        "metadata.generation", "spec.restartPolicy", "spec.dnsPolicy", "spec.schedulerName", "spec.securityContext",
        "spec.terminationGracePeriodSeconds", "spec.enableServiceLinks", "status.phase", "status.qosClass",
        *(f"spec.{containers}[].{field}" for containers in ("containers", "initContainers", "ephemeralContainers") for field in CONTAINER),
        *(f"spec.volumes[].{field}" for field in VOLUME),
    ],
    "PriorityClass": ["preemptionPolicy"],
    "Secret": ["type"],
    "Service": ["spec.type", "spec.sessionAffinity", "spec.ports[].protocol", "spec.ports[].targetPort"],
    "TokenRequest": ["spec.expirationSeconds", "status.token", "status.expirationTimestamp"],
}


def missing(kind, value):
    """The fields that an object of a kind lacks."""
    for path in DEFAULTS.get(kind, []):
        yield from absent(path.split("."), value, "")


def absent(words, value, at):
    word, rest = words[0], words[1:]
    name = word.removesuffix("[]")
    inner, here = value.get(name), f"{at}.{name}" if at else name
    if inner is None:
        # Only what there is has defaults.
        if not rest and not word.endswith("[]"):
            yield f"{here}: missing, which servers fill in"
    elif rest and word.endswith("[]"):
        for n, item in enumerate(inner):
            yield from absent(rest, item, f"{here}[{n}]")
    elif rest:
        yield from absent(rest, inner, here)
