{{/* The restricted profile of the pod security standards, of a pod. */}}
{{- define "mastery.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* And of a container. */}}
{{- define "mastery.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/*
The pods of server and worker. Called with a map:
root, component, args, resources, ports (name: number), healthPort, env (name: value), preStopSeconds, drainSeconds.
*/}}
{{- define "mastery.pod" -}}
{{- $values := .root.Values -}}
{{- $tls := and $values.tls.enabled (eq .component "server") -}}
metadata:
  labels:
    {{- include "mastery.labels" (list .root .component) | nindent 4 }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # New settings or secrets mean new pods.
    checksum/settings: {{ printf "%s%s" (include "mastery.settings" .root) (toJson $values.secret.values) | sha256sum }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "mastery.serviceAccountName" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  # Longer than the process takes to stop in good order.
  terminationGracePeriodSeconds: {{ add .preStopSeconds .drainSeconds 10 }}
  securityContext:
    {{- include "mastery.podSecurity" . | nindent 4 }}
  {{- include "mastery.placement" . | nindent 2 }}
  containers:
    - name: {{ .component }}
      image: {{ include "mastery.image" .root }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      args: {{ toJson .args }}
      securityContext:
        {{- include "mastery.containerSecurity" . | nindent 8 }}
      envFrom:
        - configMapRef:
            name: {{ include "mastery.fullname" .root }}
        {{- if or $values.secret.existing $values.secret.values }}
        - secretRef:
            name: {{ include "mastery.secretName" .root }}
        {{- end }}
      env:
        {{- range $name, $value := .env }}
        - name: {{ $name }}
          value: {{ include "mastery.setting" $value | quote }}
        {{- end }}
        {{- with $values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        {{- range $name, $number := .ports }}
        - name: {{ $name }}
          containerPort: {{ $number }}
        {{- end }}
      {{- include "mastery.probes" .healthPort | nindent 6 }}
      {{- with .preStopSeconds }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ . }}
      {{- end }}
      resources:
        {{- toYaml .resources | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        {{- if $tls }}
        - name: tls
          mountPath: {{ include "mastery.tlsPath" . }}
          readOnly: true
        {{- end }}
  volumes:
    - name: tmp
      emptyDir:
        sizeLimit: 64Mi
    {{- if $tls }}
    - name: tls
      secret:
        secretName: {{ $values.tls.secretName }}
        defaultMode: 0440
    {{- end }}
{{- end }}

{{- define "mastery.tlsPath" -}}
/etc/mastery/tls
{{- end }}

{{/*
Called with the port where health is served without TLS. Only readiness looks at Redis and Kafka: a restart would
bring neither back.
*/}}
{{- define "mastery.probes" -}}
startupProbe:
  grpc:
    port: {{ . }}
    service: liveness
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 30
livenessProbe:
  grpc:
    port: {{ . }}
    service: liveness
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  grpc:
    port: {{ . }}
    service: ""
  periodSeconds: 5
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}

{{/* Which nodes the pods are put on. */}}
{{- define "mastery.placement" -}}
{{- $values := .root.Values -}}
{{- $selector := include "mastery.selectorLabels" (list .root .component) -}}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - topologyKey: {{ . }}
    maxSkew: 1
    whenUnsatisfiable: {{ $values.spread }}
    # Those of the same generation: pods on their way out do not count.
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- $selector | nindent 8 }}
  {{- end }}
{{- with $values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- range $name := list "nodeSelector" "tolerations" "affinity" "priorityClassName" }}
{{- with index $values $name }}
{{ $name }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}
