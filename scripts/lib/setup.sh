# Sourced by quickstart, test and bench: packages, then the virtual environment.
# shellcheck shell=bash
# shellcheck source-path=SCRIPTDIR

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$LIB/packages.sh"
source "$LIB/python.sh"

set_up() { # WHO...: as in scripts/packages.txt
    require "$@"
    PYTHON=$(interpreter)
    make_venv "$PYTHON"
    PATH=$VENV/bin:$PATH
    say "ready: $("$PYTHON" -V) at $PYTHON, $("$VENV/bin/pip" --version | cut -d' ' -f1,2), .venv"
}
