# What the launch scripts have in common with each other: they read flags, show commands, run them and explain errors.
# Each of them sets `script`, its own name for messages, sources this file and defines `usage`.
# shellcheck shell=bash

: "${script:?}"
dry_run='' command=() flags='' switches=''

# Ends the script: `error: MESSAGE`. Exit code 2 is for what the caller can mend, as in gpt_jax.main.
die() {
  echo "error: $script: $1" >&2
  exit "${2:-2}"
}

((BASH_VERSINFO[0] >= 5)) || die "bash $BASH_VERSION is too old: version 5 is needed (on a Mac: brew install bash)."

# Takes the first argument for the step to do, which must be one of the others.
read_step() {
  step=$1
  shift
  case $step in
    '') usage >&2 && exit 2 ;;
    -h | --help) usage && exit ;;
  esac
  [[ " $* " == *" $step "* ]] || die "unknown step $step: expected one of $*. See $script --help."
}

# Reads the flags: --NAME=VALUE sets the variable NAME if it is one of $flags, --NAME sets it to `yes` if it is one of
# $switches (- is _ in a variable). What stands behind -- becomes `command`.
read_flags() {
  local word
  while (($#)); do
    word=${1#--}
    case $1 in
      -h | --help) usage && exit ;;
      --dry-run) dry_run=yes ;;
      --) shift && command=("$@") && return ;;
      --*=*) [[ " $flags " == *" ${word%%=*} "* ]] || unexpected "$1" && set_flag "${word%%=*}" "${word#*=}" ;;
      --*) [[ " $switches " == *" $word "* ]] || unexpected "$1" && set_flag "$word" yes ;;
      *) unexpected "$1" ;;
    esac
    shift
  done
}
set_flag() { printf -v "${1//-/_}" %s "$2"; }
unexpected() {
  die "unexpected $1. Flags are written --name=value, the command stands behind --. See $script --help."
}

need_command() {
  ((${#command[@]})) ||
    die "no command; it stands behind --, for example -- python -m gpt_jax.main --config=configs/pretrain.py"
}

# Ends the script unless the program is there; a dry run needs none.
need() {
  [[ -n $dry_run ]] || type -P "$1" >/dev/null || die "$1 is not installed or not on PATH. $2"
}

# Sets `python` to the interpreter: $PYTHON, that of the checkout $root, or python3.
find_python() {
  python=${PYTHON:-}
  if [[ -z $python ]]; then
    python=python3
    if [[ -x ${root:?}/.venv/bin/python ]]; then python=$root/.venv/bin/python; fi
  fi
  need "$python" "Install as the README says, or set PYTHON."
}

# A number of 1 or more, written without leading zeros (bash would read 08 as octal), of up to nine digits.
whole_number() {
  [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || die "$1=$2: expected a whole number of 1 or more."
}

# A name as Google Cloud and Kubernetes take it, of at most $2 characters.
resource_name() {
  [[ $1 =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ && ${#1} -le $2 ]] ||
    die "--name=$1: expected a-z, 0-9 and -, first a letter, last no -, $2 characters at most."
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
