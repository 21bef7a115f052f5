# Sourced: the interpreter, and the virtual environment made with it.
# shellcheck shell=bash

# interpreter: print the path of a Python of at least 3.11. The system's own comes first: its headers are a package
# away, and a version manager's shim costs more than starting a container. PYRUN_PYTHON overrides.
interpreter() {
    local candidate
    local candidates=(/usr/bin/python3 /usr/bin/python3.{11..19} python3 python3.{11..19})
    [[ -z ${PYRUN_PYTHON-} ]] || candidates=("$PYRUN_PYTHON")
    for candidate in "${candidates[@]}"; do
        # The answer is the program that runs, so a shim or a symbolic link to one is seen through.
        "$candidate" -I -c 'import os, sys
if sys.version_info < (3, 11): sys.exit(1)
print(os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable))' 2>/dev/null && return
    done
    return 1
}

# make_venv: .venv with the project in it, editable, and the tools of its tests. Made again when the interpreter
# changed; installed again when pyproject.toml did. Otherwise it takes no time.
make_venv() {
    local python=$1 stamp=$VENV/.installed wanted
    wanted=$(printf '%s\n' "$python" "$("$python" -V)" "$(sha256sum <"$ROOT/pyproject.toml")" "$ROOT")
    if [[ -f $stamp && $(<"$stamp") == "$wanted" && -x $VENV/bin/pyrun ]]; then
        return
    fi
    if [[ -d $VENV && $(realpath -q "$VENV/bin/python") != "$python" ]]; then
        step "removing .venv, which another interpreter made" rm -rf -- "$VENV"
    fi
    if [[ ! -x $VENV/bin/pip ]]; then
        step "making .venv with $python" "$python" -m venv "$VENV"
    fi
    step "installing pyrun into .venv" \
        "$VENV/bin/pip" install --disable-pip-version-check --quiet --editable "${ROOT}[dev]"
    printf '%s\n' "$wanted" >"$stamp"
}
