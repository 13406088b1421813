//! Which fields of Kubernetes' types Berth supports.
//!
//! An allowlist by type: what is not listed is refused with its field path, so nothing that Kubernetes knows is ignored in
//! silence, not even a field that a newer Kubernetes adds.

use super::node::Node;

/// What becomes of a field.
pub(crate) enum Support {
    /// It is read.
    Yes,
    /// It is set by a server and means nothing in a manifest; `kubectl get -o yaml` prints it, so it is accepted and dropped.
    Dropped,
    /// It is refused, unless its value changes nothing.
    Refused(Refusal),
}

/// Why a field is refused.
#[derive(Clone, Copy)]
pub(crate) struct Refusal {
    pub reason: &'static str,
    pub hint: Option<&'static str>,
}

impl Refusal {
    /// Whether the value asks for nothing that Berth lacks.
    pub fn harmless(self, value: &Node) -> bool {
        value.is_empty()
    }
}

/// Looks a field of a type up.
pub(crate) fn field(kind: &str, name: &str) -> Support {
    if DROPPED.iter().any(|(k, fields)| *k == kind && fields.contains(&name)) {
        return Support::Dropped;
    }
    let refused = REFUSED.iter().find(|r| r.kind == kind && (r.field == name || r.field.is_empty()));
    match ALLOWED.iter().find(|(k, _)| *k == kind) {
        Some((_, fields)) if fields.contains(&name) || fields.contains(&ALL) => Support::Yes,
        _ => Support::Refused(refused.map_or(UNKNOWN_TO_US, |r| r.refusal)),
    }
}

const UNKNOWN_TO_US: Refusal =
    Refusal { reason: "this version of Berth does not support the field", hint: None };

/// Every field of the type.
const ALL: &str = "*";

const DROPPED: &[(&str, &[&str])] = &[
    ("Pod", &["status"]),
    ("PersistentVolumeClaim", &["status"]),
    ("PersistentVolume", &["status"]),
    ("Service", &["status"]),
    // What is in it, a name for who clears up behind it, is no matter of whoever writes a manifest.
    ("Namespace", &["spec", "status"]),
    (
        "ObjectMeta",
        &[
            "uid",
            "creationTimestamp",
            "deletionGracePeriodSeconds",
            "deletionTimestamp",
            "generation",
            "managedFields",
            "ownerReferences",
            "resourceVersion",
            "selfLink",
        ],
    ),
];

#[rustfmt::skip]
const ALLOWED: &[(&str, &[&str])] = &[
    ("Pod", &["apiVersion", "kind", "metadata", "spec"]),
    ("ConfigMap", &[ALL]),
    ("Secret", &[ALL]),
    ("ObjectMeta", &["name", "generateName", "namespace", "labels", "annotations", "finalizers"]),
    ("PodSpec", &[
        "activeDeadlineSeconds", "affinity", "automountServiceAccountToken", "containers", "dnsConfig", "dnsPolicy",
        "enableServiceLinks", "ephemeralContainers", "hostAliases", "hostIPC", "hostNetwork", "hostPID", "hostUsers", "hostname", "hostnameOverride", "imagePullSecrets",
        "initContainers", "nodeName", "nodeSelector", "os", "overhead", "preemptionPolicy", "priority", "priorityClassName",
        "readinessGates", "resources", "restartPolicy", "runtimeClassName", "schedulerName", "securityContext", "serviceAccount", "serviceAccountName",
        "setHostnameAsFQDN", "shareProcessNamespace", "subdomain", "terminationGracePeriodSeconds", "tolerations", "topologySpreadConstraints", "volumes",
    ]),
    ("Container", &[
        "args", "command", "env", "envFrom", "image", "imagePullPolicy", "lifecycle", "livenessProbe", "name", "ports",
        "readinessProbe", "resizePolicy", "resources", "restartPolicy", "restartPolicyRules", "securityContext",
        "startupProbe", "stdin", "stdinOnce", "terminationMessagePath", "terminationMessagePolicy", "tty", "volumeMounts",
        "workingDir",
    ]),
    ("EphemeralContainer", &[
        "args", "command", "env", "envFrom", "image", "imagePullPolicy", "lifecycle", "livenessProbe", "name", "ports",
        "readinessProbe", "resizePolicy", "resources", "restartPolicy", "restartPolicyRules", "securityContext",
        "startupProbe", "stdin", "stdinOnce", "targetContainerName", "terminationMessagePath", "terminationMessagePolicy",
        "tty", "volumeMounts", "workingDir",
    ]),
    ("ContainerPort", &[ALL]),
    ("ContainerResizePolicy", &[ALL]),
    ("ContainerRestartRule", &[ALL]),
    ("ContainerRestartRuleOnExitCodes", &[ALL]),
    ("EnvVar", &["name", "value", "valueFrom"]),
    ("EnvVarSource", &["configMapKeyRef", "fieldRef", "fileKeyRef", "resourceFieldRef", "secretKeyRef"]),
    ("FileKeySelector", &[ALL]),
    ("EnvFromSource", &["configMapRef", "prefix", "secretRef"]),
    ("ConfigMapKeySelector", &[ALL]),
    ("SecretKeySelector", &[ALL]),
    ("ConfigMapEnvSource", &[ALL]),
    ("SecretEnvSource", &[ALL]),
    ("ObjectFieldSelector", &[ALL]),
    ("ResourceFieldSelector", &[ALL]),
    ("ResourceRequirements", &["limits", "requests"]),
    ("Probe", &[
        "exec", "failureThreshold", "grpc", "httpGet", "initialDelaySeconds", "periodSeconds", "successThreshold", "tcpSocket",
        "terminationGracePeriodSeconds", "timeoutSeconds",
    ]),
    ("ExecAction", &[ALL]),
    ("HTTPGetAction", &[ALL]),
    ("HTTPHeader", &[ALL]),
    ("TCPSocketAction", &[ALL]),
    ("GRPCAction", &[ALL]),
    ("SleepAction", &[ALL]),
    ("Lifecycle", &["postStart", "preStop", "stopSignal"]),
    ("LifecycleHandler", &["exec", "httpGet", "sleep"]),
    ("VolumeMount", &["mountPath", "mountPropagation", "name", "readOnly", "recursiveReadOnly", "subPath", "subPathExpr"]),
    ("SecurityContext", &[
        "allowPrivilegeEscalation", "appArmorProfile", "capabilities", "privileged", "procMount", "readOnlyRootFilesystem", "runAsGroup",
        "runAsNonRoot", "runAsUser", "seLinuxOptions", "seccompProfile",
    ]),
    ("PodSecurityContext", &[
        "appArmorProfile", "fsGroup", "fsGroupChangePolicy", "runAsGroup", "runAsNonRoot", "runAsUser", "seLinuxChangePolicy", "seLinuxOptions",
        "seccompProfile", "supplementalGroups",
        "supplementalGroupsPolicy", "sysctls",
    ]),
    ("Capabilities", &["add", "drop"]),
    ("AppArmorProfile", &[ALL]),
    ("SELinuxOptions", &[ALL]),
    ("SeccompProfile", &["localhostProfile", "type"]),
    ("Sysctl", &[ALL]),
    ("Volume", &[
        "configMap", "downwardAPI", "emptyDir", "ephemeral", "hostPath", "image", "name", "persistentVolumeClaim", "projected",
        "secret",
    ]),
    ("PersistentVolumeClaimVolumeSource", &[ALL]),
    ("EphemeralVolumeSource", &["volumeClaimTemplate"]),
    ("PersistentVolumeClaimTemplate", &["metadata", "spec"]),
    ("ImageVolumeSource", &["pullPolicy", "reference"]),
    ("PersistentVolumeClaim", &["apiVersion", "kind", "metadata", "spec"]),
    ("PersistentVolumeClaimSpec", &["accessModes", "resources", "selector", "storageClassName", "volumeMode", "volumeName"]),
    ("VolumeResourceRequirements", &["requests"]),
    ("PersistentVolume", &["apiVersion", "kind", "metadata", "spec"]),
    ("PersistentVolumeSpec", &[
        "accessModes", "capacity", "claimRef", "hostPath", "local", "nodeAffinity", "persistentVolumeReclaimPolicy",
        "storageClassName", "volumeMode",
    ]),
    ("LocalVolumeSource", &["path"]),
    ("Service", &["apiVersion", "kind", "metadata", "spec"]),
    ("ServiceSpec", &[
        "clusterIP", "clusterIPs", "externalIPs", "externalName", "externalTrafficPolicy", "internalTrafficPolicy", "ipFamilies", "ipFamilyPolicy", "ports",
        "publishNotReadyAddresses", "selector", "sessionAffinity", "sessionAffinityConfig", "trafficDistribution", "type",
    ]),
    ("ServicePort", &[ALL]),
    ("Namespace", &["apiVersion", "kind", "metadata"]),
    ("NetworkPolicy", &["apiVersion", "kind", "metadata", "spec"]),
    ("NetworkPolicySpec", &["egress", "ingress", "podSelector", "policyTypes"]),
    ("NetworkPolicyEgressRule", &["ports", "to"]),
    ("NetworkPolicyIngressRule", &["from", "ports"]),
    ("NetworkPolicyPeer", &["ipBlock", "namespaceSelector", "podSelector"]),
    ("NetworkPolicyPort", &["endPort", "port", "protocol"]),
    ("IPBlock", &["cidr", "except"]),
    ("SessionAffinityConfig", &[ALL]),
    ("ClientIPConfig", &[ALL]),
    ("ObjectReference", &[ALL]),
    ("VolumeNodeAffinity", &["required"]),
    ("NodeSelector", &[ALL]),
    ("ConfigMapVolumeSource", &[ALL]),
    ("SecretVolumeSource", &[ALL]),
    ("DownwardAPIVolumeSource", &[ALL]),
    ("DownwardAPIVolumeFile", &[ALL]),
    ("EmptyDirVolumeSource", &["medium", "sizeLimit"]),
    ("HostPathVolumeSource", &[ALL]),
    ("ProjectedVolumeSource", &["defaultMode", "sources"]),
    // serviceAccountToken: only for pods of a cluster, see the rules of volumes.
    ("VolumeProjection", &["configMap", "downwardAPI", "secret", "serviceAccountToken"]),
    ("ServiceAccountTokenProjection", &[ALL]),
    ("ConfigMapProjection", &[ALL]),
    ("SecretProjection", &[ALL]),
    ("DownwardAPIProjection", &[ALL]),
    ("KeyToPath", &[ALL]),
    ("LocalObjectReference", &[ALL]),
    ("HostAlias", &[ALL]),
    ("PodDNSConfig", &[ALL]),
    ("PodDNSConfigOption", &[ALL]),
    ("PodOS", &["name"]),
    ("PodReadinessGate", &[ALL]),
    ("Toleration", &[ALL]),
    // What only a scheduler acts on is taken as it is: the pod is on this node already. Required node affinity is checked.
    ("Affinity", &["nodeAffinity", "podAffinity", "podAntiAffinity"]),
    ("NodeAffinity", &[ALL]),
    ("NodeSelector", &[ALL]),
    ("PodAffinity", &[ALL]),
    ("PodAntiAffinity", &[ALL]),
    ("PodAffinityTerm", &[ALL]),
    ("WeightedPodAffinityTerm", &[ALL]),
    ("PreferredSchedulingTerm", &[ALL]),
    ("NodeSelectorTerm", &[ALL]),
    ("NodeSelectorRequirement", &[ALL]),
    ("TopologySpreadConstraint", &[ALL]),
    ("LabelSelector", &[ALL]),
    ("LabelSelectorRequirement", &[ALL]),
];

/// A refused field of a type; an empty field name stands for all that are not allowed.
struct Refused {
    kind: &'static str,
    field: &'static str,
    refusal: Refusal,
}

const fn refused(
    kind: &'static str,
    field: &'static str,
    reason: &'static str,
    hint: Option<&'static str>,
) -> Refused {
    Refused { kind, field, refusal: Refusal { reason, hint } }
}

const REMOVE: Option<&str> = Some("remove the field");

const REFUSED: &[Refused] = &[
    refused(
        "PodSpec",
        "schedulingGates",
        "the pod is on its node already, no scheduler will lift the gates",
        REMOVE,
    ),
    refused("PodSpec", "resourceClaims", "dynamic resource allocation is not supported", REMOVE),
    refused("EphemeralContainer", "volumeDevices", "raw block volumes are not supported", REMOVE),
    refused("Container", "volumeDevices", "raw block volumes are not supported", REMOVE),
    refused("ResourceRequirements", "claims", "dynamic resource allocation is not supported", REMOVE),
    refused(
        "LifecycleHandler",
        "tcpSocket",
        "tcpSocket hooks are not supported (nor by a kubelet)",
        Some("use httpGet or exec"),
    ),
    refused("SecurityContext", "windowsOptions", "Berth runs Linux containers only", REMOVE),
    refused("PodSecurityContext", "windowsOptions", "Berth runs Linux containers only", REMOVE),
    refused(
        "Volume",
        "nfs",
        "the volume type is not supported",
        Some("mount it on the host and use hostPath"),
    ),
    refused(
        "Volume",
        "",
        "the volume type is not supported",
        Some(
            "supported: configMap, downwardAPI, emptyDir, ephemeral, hostPath, image, persistentVolumeClaim, projected, secret",
        ),
    ),
    refused(
        "PersistentVolumeClaimSpec",
        "dataSource",
        "volumes are not filled from snapshots or other claims",
        REMOVE,
    ),
    refused(
        "PersistentVolumeClaimSpec",
        "dataSourceRef",
        "volumes are not filled from snapshots or other claims",
        REMOVE,
    ),
    refused("VolumeResourceRequirements", "limits", "the size of a volume is not limited", REMOVE),
    refused(
        "PersistentVolumeSpec",
        "nfs",
        "the volume type is not supported",
        Some("mount it on the host and use hostPath"),
    ),
    refused(
        "PersistentVolumeSpec",
        "mountOptions",
        "folders of the host are not mounted with options",
        REMOVE,
    ),
    refused(
        "PersistentVolumeSpec",
        "",
        "the volume type is not supported",
        Some("supported: hostPath, local"),
    ),
    refused(
        "ServiceSpec",
        "loadBalancerIP",
        "a node without a cluster has no load balancer",
        Some("use type NodePort, or `hostPort` in the pod"),
    ),
    refused(
        "VolumeProjection",
        "",
        "the source is not supported",
        Some("supported: configMap, downwardAPI, secret, in a cluster serviceAccountToken"),
    ),
];
