{{- define "twinserve.name" -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "twinserve.selector" -}}
app.kubernetes.io/name: twinserve
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "twinserve.labels" -}}
{{ include "twinserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* The pod of both workloads: what differs is where /data lies. */}}
{{- define "twinserve.pod" -}}
metadata:
  labels:
    {{- include "twinserve.selector" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # Settings are read at the start: other ones are another pod.
    checksum/config: {{ .Values.config | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  automountServiceAccountToken: false
  # A Service named twinserve would put TWINSERVE_PORT and others into the environment, where the
  # server looks for its settings.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add .Values.drainDelaySeconds .Values.graceSeconds .Values.closeSeconds }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: twinserve
      image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        {{- range .Values.models.files }}
        {{- if contains "=" . }}
        - --model={{ regexReplaceAll "=" . "=/models/" }}
        {{- else }}
        - --model=/models/{{ . }}
        {{- end }}
        {{- end }}
        - --model-dir=/models
        - --data-dir=/data
        {{- if .Values.galleries.backupClaim }}
        - --backup-dir=/backups
        {{- end }}
        - --host=0.0.0.0
        - --grpc-port=50051
        - --http-port=9090
        - --drain-delay={{ .Values.drainDelaySeconds }}
        - --grace={{ .Values.graceSeconds }}
        {{- if .Values.config }}
        - --config=/etc/twinserve/serve.toml
        {{- end }}
        {{- if .Values.keysSecret }}
        - --keys=/run/secrets/twinserve/keys/keys
        {{- if .Values.metricsWithoutKey }}
        - --metrics-without-key
        {{- end }}
        {{- end }}
        {{- if .Values.tlsSecret }}
        - --tls-cert=/run/secrets/twinserve/tls/tls.crt
        - --tls-key=/run/secrets/twinserve/tls/tls.key
        {{- if .Values.tlsClientCA }}
        - --tls-client-ca=/run/secrets/twinserve/tls/ca.crt
        {{- end }}
        {{- end }}
        {{- if .Values.insecure }}
        - --insecure
        {{- end }}
      {{- with .Values.env }}
      env:
        {{- range $name, $value := . }}
        - name: {{ $name }}
          value: {{ $value | quote }}
        {{- end }}
      {{- end }}
      ports:
        - name: grpc
          containerPort: 50051
        - name: http
          containerPort: 9090
      # The kubelet's gRPC probe speaks no TLS: with a certificate, readiness is asked over HTTP.
      startupProbe:
        {{- include "twinserve.ready" . | nindent 8 }}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ div .Values.probes.startupSeconds 5 }}
      readinessProbe:
        {{- include "twinserve.ready" . | nindent 8 }}
        periodSeconds: {{ .Values.probes.periodSeconds }}
        timeoutSeconds: 5
        failureThreshold: 2
      # Not health: it says NOT_SERVING while calls are drained, which is no reason to be killed.
      livenessProbe:
        httpGet:
          path: /healthz
          port: http
          {{- if .Values.tlsSecret }}
          scheme: HTTPS
          {{- end }}
        periodSeconds: {{ .Values.probes.periodSeconds }}
        timeoutSeconds: 5
        failureThreshold: 6
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      volumeMounts:
        - name: models
          mountPath: /models
          readOnly: true
        - name: data
          mountPath: /data
        {{- if .Values.galleries.backupClaim }}
        - name: backups
          mountPath: /backups
        {{- end }}
        {{- if .Values.config }}
        - name: config
          mountPath: /etc/twinserve
          readOnly: true
        {{- end }}
        {{- if .Values.keysSecret }}
        - name: keys
          mountPath: /run/secrets/twinserve/keys
          readOnly: true
        {{- end }}
        {{- if .Values.tlsSecret }}
        - name: tls
          mountPath: /run/secrets/twinserve/tls
          readOnly: true
        {{- end }}
  volumes:
    - name: models
      {{- with .Values.models.volume }}
      {{- toYaml . | nindent 6 }}
      {{- else }}
      persistentVolumeClaim:
        claimName: {{ .Values.models.claim }}
        readOnly: true
      {{- end }}
    {{- if not .Values.galleries.enabled }}
    - name: data
      emptyDir: {}
    {{- end }}
    {{- with .Values.galleries.backupClaim }}
    - name: backups
      persistentVolumeClaim:
        claimName: {{ . }}
    {{- end }}
    {{- if .Values.config }}
    - name: config
      configMap:
        name: {{ include "twinserve.name" . }}
    {{- end }}
    {{- with .Values.keysSecret }}
    - name: keys
      secret:
        secretName: {{ . }}
        defaultMode: 0440
    {{- end }}
    {{- with .Values.tlsSecret }}
    - name: tls
      secret:
        secretName: {{ . }}
        defaultMode: 0440
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
{{- end }}

{{- define "twinserve.ready" -}}
{{- if .Values.tlsSecret -}}
httpGet:
  path: /readyz
  port: http
  scheme: HTTPS
{{- else -}}
grpc:
  port: 50051
{{- end -}}
{{- end }}
