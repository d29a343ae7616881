{{/* The chart's name, or what replaces it. */}}
{{- define "sluice.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* How the names of objects begin. 50 characters leave room for what follows. */}}
{{- define "sluice.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "sluice.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sluice.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels by which a component's pods are found: (dict "root" $ "component" …). They never change, or upgrades would fail. */}}
{{- define "sluice.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sluice.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of a component's objects: (dict "root" $ "component" …). */}}
{{- define "sluice.labels" -}}
{{ include "sluice.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: sluice
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* The image of every container. */}}
{{- define "sluice.image" -}}
{{- $message := "image.repository is empty: no images are published yet, so build them (`cargo xtask images`), bring them to a registry or to the nodes, and name the repository" -}}
{{- printf "%s:%s" (required $message .Values.image.repository) (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}

{{/* Labels of a component's pods: its own, and those that the values add: (dict "root" $ "component" … "more" …). The
chart's version is none of them, or pods would be replaced where only the chart is new. */}}
{{- define "sluice.podLabels" -}}
{{- $own := include "sluice.selectorLabels" . | fromYaml -}}
{{- $version := dict "app.kubernetes.io/version" .root.Chart.AppVersion "app.kubernetes.io/part-of" "sluice" -}}
{{- merge $own $version .more | toYaml -}}
{{- end -}}

{{/* Address and port of health and metrics as an option takes them, from the values of a component. */}}
{{- define "sluice.adminAddress" -}}
{{- printf (contains ":" .admin.address | ternary "[%s]:%d" "%s:%d") .admin.address (int64 .admin.port) -}}
{{- end -}}

{{/* Where a pod may run and how much it matters, as fields of a pod, from the values of its component. */}}
{{- define "sluice.placement" -}}
nodeSelector:
  {{- merge (dict) .nodeSelector (dict "kubernetes.io/os" "linux" "kubernetes.io/arch" "amd64") | toYaml | nindent 2 }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Security context of a pod that needs nothing of its node. */}}
{{- define "sluice.unprivilegedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Security context of a container that needs nothing of its node. */}}
{{- define "sluice.unprivilegedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Environment of what keeps objects in the release's namespace. */}}
{{- define "sluice.namespaceVariable" -}}
- name: SLUICE_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- end -}}

{{/* Environment of every container. */}}
{{- define "sluice.logVariable" -}}
- name: RUST_LOG
  value: {{ .Values.log.level | quote }}
{{- end -}}
