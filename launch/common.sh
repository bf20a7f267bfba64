# What the launch scripts share; they source it. Each of them sets `script`, its own name for messages, before.
# shellcheck shell=bash

: "${script:?}"
dry_run=

# Ends the script: `error: MESSAGE`. Exit code 2 is for what the caller can mend, as in gpt_jax.main.
die() {
  echo "error: $script: $1" >&2
  exit "${2:-2}"
}

# The words as a shell reads them back, here or at the other end of ssh: each comes out as it went in.
quoted() {
  local word separator=
  for word; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    printf '%s%s' "$separator" "$word"
    separator=' '
  done
}

# Shows the command, unless $quiet is set, then does it; with --dry-run only shows it.
run() {
  if [[ -z ${quiet:-} ]]; then echo "+ $(quoted "$@")" >&2; fi
  if [[ -z $dry_run ]]; then "$@"; fi
}

# Ends the script unless the program is there; a dry run needs none.
need() {
  [[ -n $dry_run ]] || command -v "$1" >/dev/null || die "$1 is not installed or not on PATH. $2"
}

# A number of 1 or more, written without leading zeros (bash would read 08 as octal), of up to nine digits.
whole_number() {
  [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || die "$1=$2: expected a whole number of 1 or more."
}
