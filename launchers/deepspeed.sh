#!/usr/bin/env bash
# launchers/deepspeed.sh [options of deepspeed] config=FILE key=value …
#
# Starts the run on all hosts of launchers/hosts (or $HOSTFILE, or --hostfile FILE) from this one, over ssh.
# With --no_ssh: the same command on every host, each starts its own ranks. docs/launchers/deepspeed.md.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/common.sh"

SPECIAL=$'[:space:]$%`"\'\\\\;&|<>(){}*?[' # characters of a path that a remote shell or pdsh would change

# quoted WORD: prints a word such that the remote shell leaves it unchanged; pdsh expands %.
quoted() {
    local word=${1//%/%%}
    printf "'%s'" "${word//\'/\'\\\'\'}"
}

# remote_quoted WORD: prints an argument such that a remote rank receives it unchanged. DeepSpeed passes arguments to the
# remote shell unquoted, but puts those with a space into double quotes and escapes the double quotes in them.
remote_quoted() {
    local word=${1//%/%%}
    if [[ $word == *' '* ]]; then
        word=${word//\\/\\\\} word=${word//\$/\\\$} word=${word//\`/\\\`}
        printf '%s' "$word"
    elif [[ $word == *[!A-Za-z0-9_@%+=:,./-]* ]]; then
        quoted "$1"
    else
        printf '%s' "$word"
    fi
}

# follow_first_rank: prints rank 0's log until this process ends.
follow_first_rank() {
    local log=
    while [ -z "$log" ]; do
        kill -0 $$ 2>/dev/null || return 0
        sleep 0.5
        log=$(find "$logs" -name '*_rank0.log' -newer "$logs/deepspeed_env" | head -n 1)
    done
    exec tail --pid=$$ --lines=+1 --follow "$log"
}

split_arguments "$@"
# DeepSpeed replaces CUDA_VISIBLE_DEVICES on every host: by the GPUs of --include, else by 0,1,2 …
devices=${CUDA_VISIBLE_DEVICES:--1}
if [ "$devices" != -1 ] && [ "$devices" != "$(seq -s , 0 "$(tr -cd , <<<"$devices" | wc -c)")" ] &&
    [[ $(option --include "$(option -i '')") != *:* ]]; then
    die "CUDA_VISIBLE_DEVICES=$devices: DeepSpeed would use other GPUs: unset it, and use" \
        "--include HOST:4,5,6,7, or torchrun.sh"
fi
hostfile=$(option --hostfile "$(option -H "${HOSTFILE:-$root/launchers/hosts}")")
read_hosts "$hostfile"
prepare_run
# DeepSpeed gets the checked lines: its own reader would take a byte-order mark for a part of the first name.
echo "$hostfile_lines" >"$logs/hostfile"

options=(--hostfile "$logs/hostfile" --module) log_option=$logs
arguments=("${training_arguments[@]}")
if [[ " ${launcher_arguments[*]} " == *" --no_ssh "* ]]; then
    for name in -i --include -e --exclude; do # DeepSpeed would count --node_rank among the hosts that are left
        [ -z "$(option "$name" '')" ] || die "$name, with --no_ssh: remove hosts from $hostfile instead"
    done
    prepare_environment "${hosts[@]}"
    while read -r line; do export "$line"; done < <(user_environment)
    place=$(own_place "${hosts[@]}")
    options=(--node_rank "$place" --master_addr "${hosts[0]}" "${options[@]}")
else
    for path in "$(pwd -P)" "$(command -v deepspeed)"; do
        [[ $path != *[$SPECIAL]* ]] ||
            die "$path: over ssh, DeepSpeed leaves paths unquoted: rename the folder, or use --no_ssh"
    done
    prepare_environment "${hosts[-1]}" "${hosts[@]:0:${#hosts[@]}-1}"
    # ssh to a lost host ends within a minute instead of never.
    export PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND:-} -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
    # A single host is started over ssh too, because remote_quoted assumes a remote shell.
    options=(--force_multi "${options[@]}") log_option=$(quoted "$logs")
    for i in "${!arguments[@]}"; do arguments[i]=$(remote_quoted "${arguments[i]}"); done
fi
# DeepSpeed passes on the variables in this file; the user's .deepspeed_env comes last and so overrides ours.
{
    passed_environment
    user_environment
} >"$logs/deepspeed_env"
export DS_ENV_FILE=$logs/deepspeed_env

echo "deepspeed.sh: ${#hosts[@]} hosts of $hostfile, logs of all ranks in $logs"
follow_first_rank &
exec deepspeed "${launcher_arguments[@]}" --enable_each_rank_log "$log_option" "${options[@]}" showo_dist.train "${arguments[@]}"
