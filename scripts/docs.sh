#!/usr/bin/env bash
# Builds the documentation as a site in the folder site, which git ignores. The environment is .venv-docs, which has MkDocs
# (constraints-docs.txt) and the packages of .venv. Missing environments are created. A warning of the build is an error.
#
#   bash scripts/docs.sh          builds the site
#   bash scripts/docs.sh serve    serves the site at http://127.0.0.1:8000, and rebuilds it when a page changes
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
name=docs
source "$root/scripts/over_venv.sh"

cd "$root"
export NO_MKDOCS_2_WARNING=true # the versions are pinned
command=${1:-build}
if (($#)); then shift; fi
exec "$python" -m mkdocs "$command" --strict --config-file scripts/docs/mkdocs.yml "$@"
