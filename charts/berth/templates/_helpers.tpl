{{- define "berth.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "berth.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "berth.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "berth.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "berth.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* The Secret that the DaemonSet mounts. */}}
{{- define "berth.tokenSecret" -}}
{{- default (printf "%s-bootstrap" (include "berth.fullname" .)) .Values.bootstrap.existingSecret -}}
{{- end -}}

{{/* The token: given, or the one of the last installation, or a new one. */}}
{{- define "berth.token" -}}
{{- if .Values.bootstrap.token -}}
{{ .Values.bootstrap.token }}
{{- else -}}
{{- $kept := lookup "v1" "Secret" .Release.Namespace (include "berth.tokenSecret" .) -}}
{{- if and $kept (hasKey (default dict $kept.data) "token-id") (hasKey (default dict $kept.data) "token-secret") -}}
{{ index $kept.data "token-id" | b64dec }}.{{ index $kept.data "token-secret" | b64dec }}
{{- else -}}
{{ randAlphaNum 6 | lower }}.{{ randAlphaNum 16 | lower }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The group that holders of the token are in, and nobody else. */}}
{{- define "berth.group" -}}
system:bootstrappers:{{ include "berth.fullname" . }}
{{- end -}}

{{/* The config file, but for what differs from machine to machine: install.sh adds that. */}}
{{- define "berth.config" -}}
{{- $v := .Values -}}
{{- if eq (int $v.port) (int $v.readOnlyPort) -}}{{- fail "port and readOnlyPort must differ" -}}{{- end -}}
{{- $labels := merge (dict "berth.dev/node" "true") $v.nodeLabels -}}
{{- /* By whom the API server is signed when it calls the node: an authentication of config adds to that. */ -}}
{{- $c := dict "authentication" (dict "x509" (dict "clientCAFile" (printf "%s/client-ca.crt" $v.hostPaths.config))) -}}
{{- $c = mergeOverwrite $c (deepCopy $v.config) -}}
{{- $_ := set $c "root" $v.hostPaths.root -}}
{{- $_ := set $c "run" $v.hostPaths.run -}}
{{- $_ := set $c "podLogsDir" (printf "%s/pods" $v.hostPaths.logs) -}}
{{- $_ := set $c "cgroupDriver" $v.cgroupDriver -}}
{{- $_ := set $c "cgroupRoot" (eq $v.cgroupDriver "systemd" | ternary "/berth.slice" "/berth") -}}
{{- $_ := set $c "port" (int $v.port) -}}
{{- $_ := set $c "readOnlyAddress" (printf "127.0.0.1:%d" (int $v.readOnlyPort)) -}}
{{- $_ := set $c "nodeLabels" $labels -}}
{{- if $v.nodeTaints -}}{{- $_ := set $c "registerWithTaints" $v.nodeTaints -}}{{- end -}}
{{- if eq $v.network.mode "cni" -}}
{{- $_ := set $c "cniConfDir" $v.network.cniConfDir -}}
{{- $_ := set $c "cniBinDir" $v.network.cniBinDir -}}
{{- else -}}
{{- $_ := set $c "podCIDR" $v.network.podCIDR -}}
{{- $_ := set $c "bridge" $v.network.bridge -}}
{{- end -}}
{{- if $v.clusterDNS -}}{{- $_ := set $c "clusterDNS" $v.clusterDNS -}}{{- end -}}
{{- if $v.clusterDomain -}}{{- $_ := set $c "clusterDomain" $v.clusterDomain -}}{{- end -}}
{{- toYaml $c -}}
{{- end -}}
