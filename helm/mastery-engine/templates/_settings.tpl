{{/* A setting's value as a string. toJson, because numbers come as floats: 4194304 would print as 4.194304e+06. */}}
{{- define "mastery.setting" -}}
{{- kindIs "string" . | ternary . (toJson .) -}}
{{- end }}

{{/* The settings that server, worker and the topics' Job have in common, as a map. */}}
{{- define "mastery.settings" -}}
{{- with .Values.redis.url }}
MASTERY_REDIS_URL: {{ . | quote }}
{{- end }}
{{- if .Values.kafka.bootstrapServers }}
MASTERY_KAFKA_BOOTSTRAP_SERVERS: {{ .Values.kafka.bootstrapServers | quote }}
MASTERY_KAFKA_PARTITIONS: {{ include "mastery.setting" .Values.kafka.partitions | quote }}
MASTERY_KAFKA_DLQ_PARTITIONS: {{ include "mastery.setting" .Values.kafka.dlqPartitions | quote }}
MASTERY_KAFKA_REPLICATION_FACTOR: {{ include "mastery.setting" .Values.kafka.replicationFactor | quote }}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{ $name }}: {{ include "mastery.setting" $value | quote }}
{{- end }}
{{- end }}

{{/* What no schema can say, said in one line. */}}
{{- define "mastery.check" -}}
{{- $given := merge (dict) .Values.secret.values .Values.settings -}}
{{- if and .Values.secret.existing .Values.secret.values -}}
{{- fail "secret.existing and secret.values exclude each other" -}}
{{- end -}}
{{- if not (or .Values.secret.existing (hasKey $given "MASTERY_JWT_SECRET") (hasKey $given "MASTERY_JWT_JWKS")) -}}
{{- fail "nobody could sign in: set secret.existing, secret.values.MASTERY_JWT_SECRET (32 bytes or more) or settings.MASTERY_JWT_JWKS" -}}
{{- end -}}
{{- if not (or .Values.redis.url .Values.secret.existing (hasKey $given "MASTERY_REDIS_URL")) -}}
{{- fail "redis.url is empty, and so MASTERY_REDIS_URL has to be in secret.values or in secret.existing" -}}
{{- end -}}
{{- if and .Values.tls.enabled (not .Values.tls.secretName) -}}
{{- fail "tls.enabled needs tls.secretName" -}}
{{- end -}}
{{- end }}
