#!/usr/bin/env bash
# Installs what the tests of the sandbox, the metadata and the ways between nodes lack: bash scripts/test_tools.sh PYTHON
# As root on Debian or Ubuntu, by apt and by name; elsewhere it says what is missing, and tests skip.
set -euo pipefail
cd "$(dirname "$0")/.."

# The compilers and interpreters of the sandbox's own table of languages.
missing=$("$1" - <<'PYTHON'
import pathlib, shutil, tomllib
table = tomllib.loads(pathlib.Path("rust/sandbox/src/language/languages.toml").read_text())
for language in table.values():
    if not all(
        any(pathlib.Path(path).exists() for path in paths) or (name == "rustc" and shutil.which(name))
        for name, paths in language["tools"].items()
    ):
        print(language["package"])
PYTHON
)

# What the tests of MultiPL-E are written with: package, and how to see whether it is there.
lacks() { command -v "$1" >/dev/null && ! "$@" >/dev/null 2>&1 </dev/null; }
[[ "$missing" != *lua* ]] && ! compgen -G '/usr/share/lua/5.*/luaunit.lua' >/dev/null && missing+=" lua-unit"
lacks perl -e 'use Test::Deep' && missing+=" libtest-deep-perl"
{ lacks ruby -e 'require "test/unit/version"' || [[ "$missing" == *ruby* ]]; } && missing+=" ruby-test-unit"

# The runners on crun and the attacks on them; a browser for the report's and the daemon's pages.
command -v crun >/dev/null || missing+=" crun"
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null ||
  missing+=" chromium"

# A real etcd. Where systemd runs, Debian's package starts one of its own as well.
command -v etcd >/dev/null || missing+=" etcd-server"

# Mooncake's engine is linked to them, also where it uses TCP.
for library in libibverbs1 librdmacm1 libnuma1; do
  PATH=$PATH:/sbin ldconfig -p | grep "${library%1}.so.1" >/dev/null || missing+=" $library"
done

read -ra missing <<<"${missing//$'\n'/ }"
[ ${#missing[@]} = 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing for the tests, with apt: ${missing[*]}"
  apt-get update -qq || true
  install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
  # One package that a distribution lacks (Ubuntu's chromium is a snap) must not cost the others.
  if ! install "${missing[@]}"; then
    for package in "${missing[@]}"; do
      install "$package" || echo "apt could not install $package: the tests that need it are skipped" >&2
    done
  fi
else
  echo "some tests are skipped; to run them: sudo apt install ${missing[*]}"
fi
