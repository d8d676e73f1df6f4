{{- define "sluice.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- define "sluice.labels" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: sluice
{{- end -}}
{{- define "sluice.selector" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
{{- /* Not empty if the controller issues the certificates. */ -}}
{{- define "sluice.ownCa" -}}
{{- if has .Values.ca.mode (list "selfSigned" "secret") }}yes{{ end -}}
{{- end -}}
{{- define "sluice.caServer" -}}
sluice-controller.{{ .Release.Namespace }}.svc
{{- end -}}
