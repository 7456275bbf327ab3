{{- define "spillway.image" -}}
{{- $image := index .root.Values.image .name -}}
{{ printf "%s:%s" $image.repository (default .root.Chart.AppVersion $image.tag) }}
{{- end -}}

{{- define "spillway.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: spillway
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "spillway.selector" -}}
app.kubernetes.io/name: spillway
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Names of the Secrets with hashes of keys. */}}
{{- define "spillway.keysSecrets" -}}
{{- $names := list -}}
{{- range $shard := until 16 }}{{ $names = append $names (printf "keys-%d" $shard) }}{{ end -}}
{{ $names | toJson }}
{{- end -}}

{{/* The infrastructure namespaces: what the values list, kube-system, and where the operator runs. */}}
{{- define "spillway.infrastructure" -}}
{{- concat .Values.infrastructureNamespaces (list "kube-system" .Release.Namespace) | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* The user names of our two service accounts, and the group of those who may override, as text inside CEL. */}}
{{- define "spillway.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:spillway-operator
{{- end -}}
{{- define "spillway.agentUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:spillway-agent
{{- end -}}

{{/* CEL: the request is the operator's, or somebody breaks the glass. */}}
{{- define "spillway.cel.trusted" -}}
request.userInfo.username == '{{ include "spillway.operatorUser" . }}' || '{{ .Values.breakGlassGroup }}' in request.userInfo.groups
{{- end -}}

{{/* CEL: the name k of a resource is a device's. */}}
{{- define "spillway.cel.devicePrefix" -}}
{{- range $i, $prefix := .Values.devicePrefixes }}{{ if $i }} || {{ end }}k.startsWith('{{ $prefix }}'){{ end -}}
{{- end -}}

{{/* CEL: the pod spec at .path asks for devices. Extended resources stand in limits, always. */}}
{{- define "spillway.cel.devicePod" -}}
({{ .path }}.containers + (has({{ .path }}.initContainers) ? {{ .path }}.initContainers : [])).exists(c, has(c.resources) &&
  has(c.resources.limits) && c.resources.limits.exists(k, {{ include "spillway.cel.devicePrefix" .root }}))
{{- end -}}

{{/* How to override, for the end of a message inside CEL text. */}}
{{- define "spillway.override" -}}
to override, act as group {{ .Values.breakGlassGroup }}
{{- end -}}

{{/*
"true" where every GpuPool has mode Observe and holds nothing: then the operator wants no policy to act, and an upgrade must not make them act for the
moment until it has looked. Not in the copy that it restores from (.copy), and not where the chart is rendered without a cluster.
*/}}
{{- define "spillway.observing" -}}
{{- if and .Values.policies.enforce (not .copy) (.Capabilities.APIVersions.Has "spillway.dev/v1alpha1") -}}
{{- $pools := (lookup "spillway.dev/v1alpha1" "GpuPool" "" "").items -}}
{{- $enforcing := dict -}}
{{- range $pools }}
{{- if or (ne (default "Enforce" .spec.mode) "Observe") (gt (int (default 0 (default dict .status).liveBookingCount)) 0) }}{{ $_ := set $enforcing .metadata.name true }}{{ end }}
{{- end -}}
{{- if and $pools (not $enforcing) }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/* A ValidatingAdmissionPolicyBinding. */}}
{{- define "spillway.binding" -}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "spillway.labels" .root | nindent 4 }}
spec:
  policyName: {{ .name }}
  validationActions: {{ if include "spillway.observing" .root }}[Audit]{{ else if .root.Values.policies.enforce }}[Deny]{{ else }}[Warn, Audit]{{ end }}
{{- end -}}

{{/* A MutatingAdmissionPolicyBinding: without it the policy does nothing. */}}
{{- define "spillway.mutatingBinding" -}}
{{- if not (include "spillway.observing" .root) -}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "spillway.labels" .root | nindent 4 }}
spec: {policyName: {{ .name }}}
{{- end -}}
{{- end -}}

{{/* The names of our policies; each binding is called as its policy. */}}
{{- define "spillway.validatingPolicies" -}}
[spillway-binding, spillway-crd, spillway-finalizer, spillway-gpunode, spillway-ledger, spillway-model, spillway-namespace, spillway-node, spillway-operator, spillway-pod, spillway-pod-delete, spillway-reservation-delete, spillway-resize, spillway-seller-delete, spillway-status]
{{- end -}}
{{- define "spillway.mutatingPolicies" -}}
[spillway-infrastructure-daemonset, spillway-node, spillway-owner-daemonset, spillway-owner-pod, spillway-reservation-finalizer, spillway-tenant-daemonset, spillway-tenant-pod]
{{- end -}}

{{/* Gateways and the usage service know each other by certificates. */}}
{{- define "spillway.usageTls" -}}
{{- and .Values.usage.enabled .Values.usage.tls.enabled -}}
{{- end -}}

{{- define "spillway.metricsApi" -}}
{{- /* Only where somebody would be behind it. */ -}}
{{- and .Values.autoscaling.externalMetrics .Values.gateway.enabled .Values.policies.enforce (gt (int .Values.operator.replicas) 0) -}}
{{- end -}}
