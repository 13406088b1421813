# What the scripts share. Sourced from the top of the checkout.

TOOLS=$(realpath -m "${CARGO_TARGET_DIR:-target}")/tools/bin

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\033[1m' red=$'\033[1;31m' plain=$'\033[0m'; else bold='' red='' plain=''; fi
say() { echo "${bold}==>${plain} $*" >&2; }
die() { echo "${red}error:${plain} $*" >&2; exit 1; }

# need_root WHAT: ends with a clear message when neither root nor sudo is there.
need_root() { [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || die "root is needed to $1: run this as root, or install sudo"; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# debian_mirror: the mirror that this machine's apt uses, or BERTH_APT_MIRROR; another suite of it is taken for what the machine's
# own lacks.
debian_mirror() {
  local mirror
  [ -z "${BERTH_APT_MIRROR:-}" ] || { echo "$BERTH_APT_MIRROR"; return; }
  mirror=$(apt-get indextargets 'Origin: Debian' 'Created-By: Packages' --format '$(REPO_URI)' | grep -v security | head -n 1)
  [ -n "$mirror" ] || die "apt has no lists of a Debian mirror: run apt-get update, then this again"
  echo "$mirror"
}

# private_apt DIR SUITE TYPE...: what apt needs to look into another suite of Debian than the machine's, for packages of these types
# (deb, deb-src), with lists that the machine's own apt never sees: DIR/conf is to be the APT_CONFIG of such calls.
private_apt() {
  local dir=$1 suite=$2 mirror
  shift 2
  mirror=$(debian_mirror)
  mkdir -p "$dir"/lists/partial "$dir"/cache/archives/partial
  cat >"$dir/conf" <<CONF
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$dir/lists";
Dir::State::status "/dev/null";
Dir::Cache "$dir/cache";
APT::Sandbox::User "root";
CONF
  printf "%s [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main\n" "$@" >"$dir/sources.list"
}
