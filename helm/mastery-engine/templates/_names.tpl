{{/* Names and labels. Those that take a component are called with (list $ "server"). */}}

{{- define "mastery.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "mastery.selectorLabels" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ default $.Chart.Name $.Values.nameOverride }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "mastery.labels" -}}
{{- $ := index . 0 -}}
{{ include "mastery.selectorLabels" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "mastery.serviceAccountName" -}}
{{- default (ternary (include "mastery.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end }}

{{- define "mastery.secretName" -}}
{{- default (include "mastery.fullname" .) .Values.secret.existing -}}
{{- end }}

{{- define "mastery.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end }}

{{/* Not empty where there is a worker, and so topics. */}}
{{- define "mastery.hasWorker" -}}
{{- if and .Values.worker.enabled .Values.kafka.bootstrapServers }}yes{{ end -}}
{{- end }}
