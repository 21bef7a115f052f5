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
    # As pip does for what it installs. An editable installation would otherwise be compiled at every start where
    # PYTHONDONTWRITEBYTECODE is set, which doubles the time of a command.
    "$VENV/bin/python" -m compileall -q "$ROOT/runtime" "$ROOT/plugins"
    PATH=$VENV/bin:$PATH
    say "ready: $("$PYTHON" -V) at $PYTHON, $("$VENV/bin/pip" --version | cut -d' ' -f1,2), .venv"
}
