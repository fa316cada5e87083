#!/usr/bin/env bash
# Tests against other stacks, each in an environment of its own. None has one yet.
set -euo pipefail
echo "no peer environment is needed yet"
