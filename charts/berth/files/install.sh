#!/bin/busybox sh
# install.sh install|cleanup: puts Berth on the machine below, or takes it away again. Runs in the init container of the
# DaemonSet, with the image's busybox. Repeating it changes nothing; the unit is restarted only when a file has changed.
#
# The machine's folders are mounted at $HOST/{bin,config,units}; $HOST_BIN, $HOST_CONFIG and $HOST_UNITS are their names there.
# What was put where, with its SHA-256, is in $HOST/config/.chart. A file that is not in there is somebody else's: it is neither
# replaced nor removed.
set -eu

HOST=${HOST:-/host}
FILES=${FILES:-/files}    # berth.service and config.yaml
BINARY=${BINARY:-/berth}
TOKEN=${TOKEN:-/token}    # token-id and token-secret
CA=${CA:-/ca/ca.crt}      # of the API server's own certificate
CLIENT_CA=${CLIENT_CA:-/client-ca/ca.crt} # of those of its clients, by one of which it calls nodes; if it is not there, the other one is taken
WORK=${WORK:-/work}       # in memory
RESOLV=${RESOLV:-/etc/resolv.conf}
RECORD=$HOST/config/.chart
PENDING=$HOST/config/.chart-restart

say() { echo "berth: $*"; }
die() { echo "berth: error: $*" >&2; exit 1; }

# A command in the machine's own mount namespace. hostPID makes its first process our process 1.
on_host() { ${ON_HOST-nsenter -t 1 -m --} "$@"; }

name_on_host() {
  case $1 in
    bin/*) echo "$HOST_BIN/${1#*/}" ;;
    config/*) echo "$HOST_CONFIG/${1#*/}" ;;
    units/*) echo "$HOST_UNITS/${1#*/}" ;;
  esac
}

digest() { sha256sum <"$1" | cut -d ' ' -f 1; }

recorded() { [ -f "$RECORD" ] && grep -q " $1\$" "$RECORD"; }

# record FILE DIGEST
record() {
  { [ ! -f "$RECORD" ] || grep -v " $1\$" "$RECORD" || true; echo "$2 $1"; } >"$RECORD.new"
  mv -f "$RECORD.new" "$RECORD"
}

# put SOURCE FILE MODE: FILE is bin/berth, config/config.yaml ... It is never there in part, and a machine that stops halfway
# goes on where it was: what has to be restarted is noted first, and a file is recorded as ours before it is there.
put() {
  local target=$HOST/$2 new
  new=${target%/*}/.${target##*/}.new
  if [ -e "$target" ] && cmp -s "$1" "$target" && [ "$(stat -c %a "$target")" = "$3" ]; then return; fi
  if { [ -e "$target" ] || [ -L "$target" ]; } && ! recorded "$2"; then
    die "$(name_on_host "$2") is there, and not from this chart: remove it, or give another folder with hostPaths.${2%%/*}"
  fi
  : >"$PENDING"
  rm -f "$new"
  (umask 077; cp "$1" "$new")
  chmod "$3" "$new"
  sync "$new"
  if [ "$2" = bin/berth ] && ! on_host "$HOST_BIN/${new##*/}" version >"$WORK/version" 2>&1; then
    rm -f "$new"
    die "the image's berth does not run on this machine: $(tail -n 1 "$WORK/version")"
  fi
  record "$2" "$(digest "$new")"
  mv -f "$new" "$target"
  say "wrote $(name_on_host "$2")"
}

# The node's name, and the cluster's DNS as the machine's kubelet gives it to pods, unless values say otherwise.
machine_config() {
  cat "$FILES/config.yaml"
  echo "nodeName: $NODE_NAME_PREFIX$NODE_NAME"
  local domain servers
  domain=$(awk '$1 == "search" { for (i = 2; i <= NF; i++) if ($i ~ /^svc\./) { print substr($i, 5); exit } }' "$RESOLV")
  [ -n "$domain" ] || return 0
  servers=$(awk '$1 == "nameserver" { printf "%s\"%s\"", separator, $2; separator = ", " }' "$RESOLV")
  grep -q '^clusterDNS:' "$FILES/config.yaml" || echo "clusterDNS: [$servers]"
  grep -q '^clusterDomain:' "$FILES/config.yaml" || echo "clusterDomain: $domain"
}

bootstrap_kubeconfig() {
  local server=${API_SERVER:-} host=${KUBERNETES_SERVICE_HOST:-} id secret
  if [ -z "$server" ]; then
    [ -n "$host" ] || die "this pod was not told the address of the API server: set apiServer"
    case $host in *:*) host="[$host]" ;; esac
    server=https://$host:${KUBERNETES_SERVICE_PORT_HTTPS:-443}
  fi
  [ -s "$TOKEN/token-id" ] && [ -s "$TOKEN/token-secret" ] || die "the Secret of the bootstrap token lacks token-id or token-secret"
  id=$(cat "$TOKEN/token-id"); secret=$(cat "$TOKEN/token-secret")
  cat <<KUBECONFIG
apiVersion: v1
kind: Config
clusters:
  - name: cluster
    cluster:
      server: $server
      certificate-authority-data: $(base64 -w 0 "$CA")
users:
  - name: bootstrap
    user:
      token: $id.$secret
contexts:
  - name: bootstrap
    context: { cluster: cluster, user: bootstrap }
current-context: bootstrap
KUBECONFIG
}

# unit_does VERB: of systemctl, with the unit's last words when it fails.
unit_does() {
  on_host systemctl "$1" berth.service && return
  on_host journalctl --no-pager --quiet --lines 20 --unit berth.service >&2 || true
  die "systemctl $1 berth.service failed on this machine"
}

install() {
  local node=$NODE_NAME_PREFIX$NODE_NAME
  [ ${#node} -le 63 ] || die "$node is longer than 63 characters and cannot be a node's name: shorten nodeNamePrefix"
  umask 077
  machine_config >"$WORK/config.yaml"
  bootstrap_kubeconfig >"$WORK/bootstrap-kubeconfig"
  put "$BINARY" bin/berth 755
  put "$WORK/config.yaml" config/config.yaml 644
  put "$WORK/bootstrap-kubeconfig" config/bootstrap-kubeconfig 600
  if [ -s "$CLIENT_CA" ]; then put "$CLIENT_CA" config/client-ca.crt 644; else put "$CA" config/client-ca.crt 644; fi
  put "$FILES/berth.service" units/berth.service 644
  if [ -e "$PENDING" ]; then
    # Labels of SELinux come from the folder; /opt/berth/bin is for programs only by name.
    on_host restorecon -R "$HOST_BIN" "$HOST_UNITS/berth.service" 2>/dev/null || true
    on_host systemctl daemon-reload
    on_host systemctl --quiet enable berth.service
    unit_does restart
    rm -f "$PENDING"
    say "$node runs what this chart has"
  else
    on_host systemctl --quiet enable berth.service
    unit_does start
    say "nothing has changed; $node runs"
  fi
}

# Ends all pods: an agent that was started with --cleanup-on-exit does that when it is stopped.
end_pods() {
  [ -x "$HOST/bin/berth" ] || return 0
  mkdir -p "$HOST/units/berth.service.d"
  {
    echo '[Service]'
    echo 'ExecStart='
    sed -n 's/^ExecStart=.*/& --cleanup-on-exit/p' "$HOST/units/berth.service"
    echo 'TimeoutStopSec=15min'
  } >"$HOST/units/berth.service.d/cleanup.conf"
  on_host systemctl daemon-reload
  say "ending the node's pods"
  unit_does restart
  unit_does stop
  on_host systemctl --quiet disable berth.service
}

cleanup() {
  [ -f "$RECORD" ] || { say "nothing of this chart is on this machine"; return; }
  if recorded units/berth.service && [ -e "$HOST/units/berth.service" ]; then end_pods; fi
  rm -rf "$HOST/units/berth.service.d/cleanup.conf"
  rmdir "$HOST/units/berth.service.d" 2>/dev/null || true
  local was file
  while read -r was file; do
    # What a machine that stopped halfway has left.
    rm -f "$HOST/${file%/*}/.${file##*/}.new"
    if [ ! -e "$HOST/$file" ]; then continue
    elif [ "$(digest "$HOST/$file")" != "$was" ]; then say "$(name_on_host "$file") was changed by hand and stays"
    else rm -f "$HOST/$file"; say "removed $(name_on_host "$file")"
    fi
  done <"$RECORD"
  rm -f "$RECORD" "$PENDING"
  on_host systemctl daemon-reload
  on_host rmdir "$HOST_BIN" "$HOST_CONFIG" 2>/dev/null || true
}

case ${1:-} in
  install) install ;;
  cleanup) cleanup ;;
  *) die "usage: install.sh install|cleanup" ;;
esac
