//! Every label, annotation, taint, finalizer and well-known name of Spillway, in one place and one spelling.

/// API group of all kinds.
pub const GROUP: &str = "spillway.dev";
/// The one version served.
pub const VERSION: &str = "v1alpha1";
/// Field manager of every server-side apply that Spillway makes.
pub const FIELD_MANAGER: &str = "spillway";

/// Node label that puts a node into a pool; its value is the name of the `GpuPool`.
pub const POOL_LABEL: &str = "spillway.dev/pool";
/// The one taint key. `NoSchedule` says who may land, `NoExecute` who may stay.
pub const HOLD_TAINT: &str = "spillway.dev/hold";
/// Value of [`HOLD_TAINT`] on a node where nobody but infrastructure may land: new, preparing, ending, quarantined.
pub const HOLD_CLOSED: &str = "closed";
/// Value of [`HOLD_TAINT`] on a node that is not sold: the owner's device pods may land.
pub const HOLD_UNSOLD: &str = "unsold";
/// Prefix of the node label `hold.spillway.dev/<namespace>`: that namespace holds devices of the node.
pub const HOLD_LABEL_PREFIX: &str = "hold.spillway.dev/";
/// Middle of the node label `<namespace>.hold.spillway.dev/<reservation>`.
pub const HOLD_LABEL_INFIX: &str = ".hold.spillway.dev/";
/// Namespace label with the values `tenant` or `owner`, written by the operator when a `Tenant` lists the namespace.
pub const ROLE_LABEL: &str = "spillway.dev/role";
/// Value of [`ROLE_LABEL`] in namespaces of buyers.
pub const ROLE_TENANT: &str = "tenant";
/// Value of [`ROLE_LABEL`] in namespaces of the owner.
pub const ROLE_OWNER: &str = "owner";
/// Namespace label whose value is the namespace's UID: the taint value of the whole nodes that it holds.
pub const HOLDER_LABEL: &str = "spillway.dev/holder";
/// Namespace label with the name of the `Tenant` that lists the namespace.
pub const TENANT_LABEL: &str = "spillway.dev/tenant";
/// Pod label by which a pod asks for the nodes of one reservation of its namespace.
pub const RESERVATION_LABEL: &str = "spillway.dev/reservation";
/// Pod label with the name of the `ModelEndpoint` of which the pod is a replica.
pub const ENDPOINT_LABEL: &str = "spillway.dev/endpoint";
/// Pod label with the name of the `Model` that a replica serves.
pub const MODEL_LABEL: &str = "spillway.dev/model";
/// Pod label with the version of the model that a replica serves.
pub const VERSION_LABEL: &str = "spillway.dev/version";
/// Annotation without which a live `Committed` reservation may not be deleted; its value is the reservation's UID.
pub const ALLOW_EARLY_END: &str = "spillway.dev/allow-early-end";
/// Node annotation: ledger generation on which the last write of taints and labels stands.
pub const GENERATION_ANNOTATION: &str = "spillway.dev/generation";
/// Node annotation: Unix milliseconds of the last change of the hold taints.
pub const HOLD_SINCE_ANNOTATION: &str = "spillway.dev/hold-since";
/// Node annotation: id of the booking for which the node is being prepared or is held; several, with commas, while parts of it are prepared.
pub const BOOKING_ANNOTATION: &str = "spillway.dev/booking";
/// Node annotation: the parts for which a shared node is set up, as `<booking id>=<devices>` with commas between them.
pub const PARTS_ANNOTATION: &str = "spillway.dev/parts";
/// Beginning of the value of [`HOLD_TAINT`] on a shared node: `node.<UID of the node>`. Pods get its toleration from the operator, one by one.
pub const HOLD_NODE_PREFIX: &str = "node.";
/// Node annotation that keeps the cluster autoscaler from deleting a held node.
pub const CLUSTER_AUTOSCALER_ANNOTATION: &str = "cluster-autoscaler.kubernetes.io/scale-down-disabled";
/// Node annotation that keeps Karpenter from disrupting a held node.
pub const KARPENTER_ANNOTATION: &str = "karpenter.sh/do-not-disrupt";
/// Finalizer on `GpuReservation`, `GpuPool` and `Tenant`: what they bought or sold is ended properly first.
pub const FINALIZER: &str = "spillway.dev/ledger";
/// The only name a `CapacityLedger` may have.
pub const LEDGER_NAME: &str = "cluster";
/// Label on `CapacityLedgerPage`: `index`, `bookings` or `archive`.
pub const PAGE_KIND_LABEL: &str = "spillway.dev/page";
/// ConfigMap in the operator's namespace: the policies and bindings of the chart, from which they are restored.
pub const POLICIES_CONFIGMAP: &str = "spillway-policies";
/// ConfigMap in the operator's namespace that is there while the audit has stopped sales; a person deletes it.
pub const AUDIT_BRAKE_CONFIGMAP: &str = "spillway-audit-brake";
/// Namespace in which the operator attacks itself: a tenant's to the policies, in no Tenant.
pub const SELFTEST_NAMESPACE: &str = "spillway-selftest";
/// The user as whom it does, the only one that it may impersonate.
pub const SELFTEST_USER: &str = "spillway:selftest";
/// A `ServiceAccount` without rights in [`SELFTEST_NAMESPACE`].
pub const SELFTEST_SERVICE_ACCOUNT: &str = "nobody";
/// Deployment of the operator: a release without it is being uninstalled.
pub const OPERATOR_DEPLOYMENT: &str = "spillway-operator";
/// Service by which gateways are found and asked for their load, Ready or not.
pub const GATEWAY_LOAD_SERVICE: &str = "spillway-gateway-load";
/// Service before the operator's metrics API.
pub const METRICS_API_SERVICE: &str = "spillway-metrics-api";
/// Secret in the operator's namespace with the certificate of its metrics API.
pub const METRICS_TLS_SECRET: &str = "spillway-metrics-tls";
/// Service before the usage service; its certificate has this name, with the namespace's.
pub const USAGE_SERVICE: &str = "spillway-usage";
/// What gateways are called in their certificate, with the namespace's name.
pub const GATEWAYS: &str = "spillway-gateway";
/// What the operator is called in its certificate, with the namespace's name.
pub const OPERATOR: &str = "spillway-operator";
/// Secret in the operator's namespace with the CA of the usage service and of gateways, and its key. Nothing mounts it.
pub const USAGE_CA_SECRET: &str = "spillway-usage-ca";
/// Secret in the operator's namespace with the certificate of the usage service.
pub const USAGE_TLS_SECRET: &str = "spillway-usage-tls";
/// Secret in the operator's namespace with the certificate that gateways show to the usage service.
pub const USAGE_CLIENT_TLS_SECRET: &str = "spillway-usage-client-tls";
/// Name of the `APIService` of external metrics: one adapter of a cluster has it.
pub const EXTERNAL_METRICS_APISERVICE: &str = "v1beta1.external.metrics.k8s.io";
/// Annotation of a mirror pod: the kubelet's picture of a static pod.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Pod Security label that the operator sets on namespaces it lists.
pub const POD_SECURITY_ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// What pods of a version of a model call their host, by which a gateway knows of which version each is.
pub fn host_of(version: &str) -> String {
    version.replace('.', "-")
}

/// Value of [`HOLD_TAINT`] on a shared node.
pub fn hold_of_node(node_uid: &str) -> String {
    format!("{HOLD_NODE_PREFIX}{node_uid}")
}

/// Label key that says that a namespace holds devices of a node.
pub fn hold_label(namespace: &str) -> String {
    format!("{HOLD_LABEL_PREFIX}{namespace}")
}

/// Label key that says that one reservation of a namespace holds devices of a node.
pub fn reservation_hold_label(namespace: &str, reservation: &str) -> String {
    format!("{namespace}{HOLD_LABEL_INFIX}{reservation}")
}

/// True for the label keys that [`hold_label`] and [`reservation_hold_label`] make.
pub fn is_hold_label(key: &str) -> bool {
    key.starts_with(HOLD_LABEL_PREFIX) || key.contains(HOLD_LABEL_INFIX)
}
