# What the scripts share. Sourced from the top of the checkout.

TOOLS=$(realpath -m "${CARGO_TARGET_DIR:-target}")/tools/bin

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf '\033[1;31merror:\033[0m %s\n' "$*" >&2; exit 1; }

# need_root WHAT: ends with a clear message when neither root nor sudo is there.
need_root() { [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || die "root is needed to $1: run this as root, or install sudo"; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
