"""A compact schema of the KubeRay and Kubernetes fields that configs/kuberay uses.

Written from the operator's Go types (`ray-operator/apis/ray/v1` at version 1.7) and the Kubernetes API; it
holds the fields used here and their neighbours, not all there are. Objects are closed: a misspelt or
misplaced field fails, as it would be dropped in silence by a server without strict validation.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def fields(required: str = "", **properties: Schema) -> Schema:
    """A closed object."""
    return {
        "type": "object",
        "properties": {name.rstrip("_"): schema for name, schema in properties.items()},
        "required": required.split(),
        "additionalProperties": False,
    }


def listed(item: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": item, "minItems": least}


def one_of(*names: str) -> Schema:
    return {"enum": list(names)}


TEXT: Schema = {"type": "string", "minLength": 1}
ANY_TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXTS: Schema = {"type": "object", "additionalProperties": ANY_TEXT}
QUANTITY: Schema = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY, "minProperties": 1}
NAME: Schema = {"type": "string", "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
LABELS: Schema = {
    "type": "object",
    "propertyNames": {
        "pattern": r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
    },
    "additionalProperties": {
        "type": "string",
        "pattern": r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$",
    },
}
METADATA = fields("name namespace labels", name=NAME, namespace=NAME, labels=LABELS, annotations=TEXTS)
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}

SECURITY = fields(
    allowPrivilegeEscalation=FLAG,
    capabilities=fields(drop=listed(TEXT), add=listed(TEXT)),
    readOnlyRootFilesystem=FLAG,
    runAsNonRoot=FLAG,
    runAsUser=COUNT,
)
CONTAINER = fields(
    "name image resources",
    name=NAME,
    image=TEXT,
    command=listed(TEXT),
    args=listed(TEXT),
    env=listed(fields("name", name=TEXT, value=ANY_TEXT, valueFrom={"type": "object"})),
    envFrom=listed(fields(secretRef=fields("name", name=NAME, optional=FLAG))),
    ports=listed(fields("containerPort", containerPort=PORT, name=NAME, protocol=one_of("TCP", "UDP"))),
    resources=fields("limits requests", limits=QUANTITIES, requests=QUANTITIES),
    securityContext=SECURITY,
    volumeMounts=listed(fields("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG, subPath=TEXT)),
)
VOLUME = fields(
    "name",
    name=NAME,
    emptyDir=fields(medium=one_of("", "Memory"), sizeLimit=QUANTITY),
    persistentVolumeClaim=fields("claimName", claimName=NAME, readOnly=FLAG),
    secret=fields("secretName", secretName=NAME, defaultMode=COUNT),
)
TOLERATION = fields(key=TEXT, operator=one_of("Exists", "Equal"), value=ANY_TEXT, effect=TEXT)
POD = fields(
    "spec",
    metadata=fields(labels=LABELS, annotations=TEXTS),
    spec=fields(
        "containers",
        containers=listed(CONTAINER, 1),
        volumes=listed(VOLUME),
        nodeSelector=LABELS,
        tolerations=listed(TOLERATION),
        # Never, or unset, under autoscaler v2: the operator refuses others.
        restartPolicy=one_of("Never"),
        terminationGracePeriodSeconds=COUNT,
        automountServiceAccountToken=FLAG,
        serviceAccountName=NAME,
        securityContext=fields(runAsNonRoot=FLAG, runAsUser=COUNT, runAsGroup=COUNT, fsGroup=COUNT),
    ),
)
GROUP = {"rayStartParams": TEXTS, "template": POD, "labels": LABELS, "resources": QUANTITIES}
CLUSTER = fields(
    "headGroupSpec",
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=fields(mode=one_of("token", "disabled"), secretName=NAME, enableK8sTokenAuth=FLAG),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(
        version=one_of("v1", "v2"),
        idleTimeoutSeconds=COUNT,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        resources=fields(limits=QUANTITIES, requests=QUANTITIES),
    ),
    gcsFaultToleranceOptions=fields(
        backend=one_of("redis", "rocksdb"),
        redisAddress=TEXT,
        storage=fields(
            claimName=NAME,
            size=QUANTITY,
            storageClassName=NAME,
            accessModes=listed(one_of("ReadWriteOnce", "ReadWriteMany")),
            subPath=TEXT,
            deletionPolicy=one_of("DeleteWithCluster", "Retain"),
        ),
    ),
    headGroupSpec=fields(
        "template",
        serviceType=one_of("ClusterIP"),
        enableIngress=FLAG,
        headService={"type": "object"},
        **GROUP,
    ),
    workerGroupSpecs=listed(
        fields(
            "groupName minReplicas maxReplicas template",
            groupName=NAME,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            idleTimeoutSeconds=COUNT,
            priority=COUNT,
            **GROUP,
        )
    ),
)


def kind(name: str, version: str, **properties: Schema) -> Schema:
    head = {"apiVersion": one_of(version), "kind": one_of(name), "metadata": METADATA}
    return fields("apiVersion kind metadata", **head, **properties)


PEERS = listed(
    fields(
        podSelector=fields(matchLabels=LABELS),
        namespaceSelector=fields(matchLabels=LABELS),
        ipBlock=fields("cidr", cidr=TEXT, except_=listed(TEXT)),
    ),
    1,
)
POLICY_PORTS = listed(fields("protocol port", protocol=one_of("TCP", "UDP"), port=PORT))
KINDS = {
    "RayJob": kind(
        "RayJob",
        "ray.io/v1",
        spec=fields(
            "rayClusterSpec",
            rayClusterSpec=CLUSTER,
            entrypoint=TEXT,
            entrypointNumCpus={"type": "number"},
            entrypointNumGpus={"type": "number"},
            entrypointResources=TEXT,
            runtimeEnvYAML=TEXT,
            submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode"),
            submitterConfig=fields(backoffLimit=COUNT),
            submitterPodTemplate=POD,
            shutdownAfterJobFinishes=FLAG,
            ttlSecondsAfterFinished=COUNT,
            activeDeadlineSeconds={"type": "integer", "minimum": 1},
            backoffLimit=COUNT,
            suspend=FLAG,
            metadata=TEXTS,
        ),
    ),
    "RayService": kind(
        "RayService",
        "ray.io/v1",
        spec=fields(
            "rayClusterConfig",
            rayClusterConfig=CLUSTER,
            serveConfigV2=TEXT,
            excludeHeadPodFromServeSvc=FLAG,
            upgradeStrategy=fields(type=one_of("NewCluster", "None")),
        ),
    ),
    "NetworkPolicy": kind(
        "NetworkPolicy",
        "networking.k8s.io/v1",
        spec=fields(
            "podSelector policyTypes",
            podSelector=fields(matchLabels=LABELS),
            policyTypes=listed(one_of("Ingress", "Egress"), 1),
            ingress=listed(fields(from_=PEERS, ports=POLICY_PORTS)),
            egress=listed(fields(to=PEERS, ports=POLICY_PORTS)),
        ),
    ),
    "Secret": kind("Secret", "v1", type=one_of("Opaque"), stringData=TEXTS, data=TEXTS),
    "PersistentVolumeClaim": kind(
        "PersistentVolumeClaim",
        "v1",
        spec=fields(
            "accessModes resources",
            accessModes=listed(one_of("ReadWriteOnce", "ReadWriteMany"), 1),
            storageClassName=NAME,
            resources=fields("requests", requests=QUANTITIES),
        ),
    ),
}
