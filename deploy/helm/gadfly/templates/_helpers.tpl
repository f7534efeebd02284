{{- define "gadfly.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-gadfly" (.Release.Name | trunc 33 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- /* The labels that select the pods of a part: (dict "root" $ "part" "service"). */ -}}
{{- define "gadfly.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "gadfly.labels" -}}
{{ include "gadfly.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- /* The addresses of the engines, comma-separated. Each pod of the StatefulSet has a name of its own. */ -}}
{{- define "gadfly.engineUrls" -}}
{{- if .Values.engine.enabled }}
{{- $name := printf "%s-engine" (include "gadfly.name" .) }}
{{- if .Values.engine.byName }}
{{- printf "dns+http://%s.%s.svc:%d" $name .Release.Namespace (int .Values.engine.port) }}
{{- else }}
{{- $urls := list }}
{{- range $number := until (int .Values.engine.replicas) }}
{{- $urls = append $urls (printf "http://%s-%d.%s.%s.svc:%d" $name $number $name $.Release.Namespace (int $.Values.engine.port)) }}
{{- end }}
{{- join "," $urls }}
{{- end }}
{{- else }}
{{- if not .Values.engine.urls }}{{ fail "engine.urls: name the engines, or set engine.enabled" }}{{ end }}
{{- join "," .Values.engine.urls }}
{{- end }}
{{- end }}

{{- /* A value of a setting as text. Helm reads numbers as floats, which would be printed as 1e+09. */ -}}
{{- define "gadfly.text" -}}
{{- if kindIs "slice" . }}{{ join "," . }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}
{{- else }}{{ toString . }}
{{- end }}
{{- end }}

{{- define "gadfly.secretVariable" -}}
{{- if .secret.name }}
- name: {{ .variable }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret.name }}
      key: {{ .secret.key }}
{{- end }}
{{- end }}

{{- /* What all parts are told. */ -}}
{{- define "gadfly.environment" -}}
- {name: GADFLY_HOME, value: /data}
- {name: GADFLY_CACHE, value: /data/cache}
{{- range $name, $value := .Values.settings }}
- {name: {{ printf "GADFLY_%s" (upper $name) }}, value: {{ include "gadfly.text" $value | quote }}}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* What those are told that ask engines, actor and grader, and use the database. */ -}}
{{- define "gadfly.clientEnvironment" -}}
{{ include "gadfly.environment" . }}
- {name: GADFLY_ADAPTERS, value: /adapters}
- {name: GADFLY_ENGINE_URLS, value: {{ include "gadfly.engineUrls" . | quote }}}
{{- include "gadfly.secretVariable" (dict "variable" "GADFLY_DATABASE_URL" "secret" .Values.secrets.databaseUrl) }}
{{- include "gadfly.secretVariable" (dict "variable" "GADFLY_ENGINE_KEY" "secret" .Values.secrets.engineKey) }}
{{- include "gadfly.secretVariable" (dict "variable" "GADFLY_ACTOR_KEY" "secret" .Values.secrets.actorKey) }}
{{- include "gadfly.secretVariable" (dict "variable" "GADFLY_GRADER_KEY" "secret" .Values.secrets.graderKey) }}
{{- end }}

{{- /* Of engine and trainer, which download models. */ -}}
{{- define "gadfly.modelEnvironment" -}}
- {name: HOME, value: /data/home}
- {name: HF_HOME, value: /data/huggingface}
{{- include "gadfly.secretVariable" (dict "variable" "HF_TOKEN" "secret" .Values.secrets.huggingFaceToken) }}
{{- end }}

{{- /* Kubernetes would set GADFLY_PORT=tcp://... for a Service called gadfly: no links. */ -}}
{{- define "gadfly.pod" -}}
enableServiceLinks: false
automountServiceAccountToken: false
{{- with .root.Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .root.Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- range $field := list "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" }}
{{- with index $.part $field }}
{{ $field }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{- define "gadfly.container" -}}
imagePullPolicy: {{ .Values.images.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "gadfly.mounts" -}}
- {name: data, mountPath: /data}
- {name: tmp, mountPath: /tmp}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "gadfly.volumes" -}}
- name: tmp
  emptyDir: {}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "gadfly.adaptersVolume" -}}
- name: adapters
  persistentVolumeClaim:
    claimName: {{ .Values.adapters.existingClaim | default (printf "%s-adapters" (include "gadfly.name" .)) }}
{{- end }}

{{- define "gadfly.dataClaim" -}}
- apiVersion: v1
  kind: PersistentVolumeClaim
  metadata:
    name: data
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .storageClass }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests:
        storage: {{ .size }}
{{- end }}
