# Functions that the launchers share; sourced by them.
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
if [ -x "$root/.venv/bin/python" ]; then PATH=$root/.venv/bin:$PATH; fi

# Lines of env that every rank gets, on every host; names that match SECRET, and
# URLs with a user or a password, are left out.
PASSED='^(NCCL|GLOO|TORCH|TORCHINDUCTOR|PYTORCH|TRITON|CUDA|HF|WANDB|DS|OMP|MKL|FI|UCX|SHOWO)_'
PASSED+='|^(https?_proxy|no_proxy|all_proxy|HTTPS?_PROXY|NO_PROXY|ALL_PROXY)='
SECRET='KEY|TOKEN|SECRET|PASSWORD'

die() {
    echo "${0##*/}: $*" >&2
    exit 2
}

# split_arguments WORD…: words before config=FILE are for the launcher, the rest for the training.
split_arguments() {
    launcher_arguments=() training_arguments=()
    while [ $# -gt 0 ] && [[ $1 != config=* ]]; do
        [[ ! $1 =~ ^[A-Za-z_]+\.[A-Za-z_.0-9]*= ]] || die "$1: config=FILE comes before the keys of the config"
        launcher_arguments+=("$1")
        shift
    done
    training_arguments=("$@")
    [ $# -gt 0 ] || die "config=FILE is missing; options of the launcher come before it"
}

# option NAME DEFAULT: prints the value of one of the launcher's options.
option() {
    local i
    for ((i = 0; i < ${#launcher_arguments[@]}; i++)); do
        case ${launcher_arguments[i]} in
            "$1") echo "${launcher_arguments[i + 1]-}" && return ;;
            "$1="*) echo "${launcher_arguments[i]#*=}" && return ;;
        esac
    done
    echo "$2"
}

# prepare_run: checks the config before anything starts; sets $logs, a folder in the run's folder.
prepare_run() {
    local resolved folder
    resolved=$(showo-dist config "${training_arguments[@]}") || exit 2
    folder=$(python -c 'import sys, yaml; print(yaml.safe_load(sys.stdin)["experiment"]["output_dir"])' <<<"$resolved")
    logs=$(realpath --canonicalize-missing -- "$folder")/logs
    mkdir -p "$logs"
}

# read_hosts FILE: sets $hostfile_lines to the checked lines of a hostfile, $hosts to the names or addresses in it
# (without users) and $slots_of to the number of ranks of each.
read_hosts() {
    local host slots
    # -S: without site-packages Python starts in a tenth of the time.
    hostfile_lines=$(PYTHONPATH=$root/launchers python3 -S -m showo_launch.hostfile "$1") || exit 2
    hosts=() slots_of=()
    while read -r host slots; do
        hosts+=("${host#*@}") slots_of+=("${slots#slots=}")
    done <<<"$hostfile_lines"
}

# own_place NAME…: prints which of the names is this machine, counted from 0.
own_place() {
    local place=0 name own
    own=" $(hostname) $(hostname -s) $(hostname -f 2>/dev/null || true) $(hostname -I) "
    for name in "$@"; do
        [[ $own == *" $name "* ]] && echo "$place" && return
        place=$((place + 1))
    done
    die "this machine is none of: $* (it is called:$own)"
}

# interface_towards HOST: prints the network interface through which this machine and HOST talk.
interface_towards() {
    local address
    address=$({ getent ahostsv4 "$1" || getent ahosts "$1"; } | awk '{ print $1; exit }')
    [ -n "$address" ] || die "host $1: unknown"
    if ip -oneline address show to "$address" | grep -q .; then
        ip -oneline address show to "$address" | awk '{ print $2; exit }'
    else
        ip -oneline route get "$address" | sed -n 's/.* dev \([^ ]*\).*/\1/p'
    fi
}

# prepare_environment HOST…: sets the variables below where they are unset; the hosts are those of the run.
prepare_environment() {
    local host interface scratch=${TMPDIR:-/tmp}/showo-dist-$(id -u) # not -un: a container may not know the name
    if command -v ip >/dev/null; then
        # For gloo alone: NCCL finds its interfaces itself, and one of several would slow it down.
        # /etc/hosts of Debian gives a machine's own name the address 127.0.1.1: then ask for another host.
        for host in "$@"; do
            interface=$(interface_towards "$host")
            [ "$interface" != lo ] && break
        done
        [ "$interface" != lo ] || [ $# = 1 ] || [ -n "${GLOO_SOCKET_IFNAME:-}" ] ||
            die "$*: all are addresses of this machine alone; correct /etc/hosts, or set GLOO_SOCKET_IFNAME"
        export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$interface}
    fi
    # Rows of many lengths fragment the GPU's memory; segments that can grow keep it in one piece.
    export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}}
    # Caches of compiled kernels are per host: on a shared disk, hosts would overwrite each other's. The ranks
    # refuse a folder of another user.
    export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch-triton}
    export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$scratch-inductor}
}

# user_environment: prints the lines NAME=VALUE of the user's .deepspeed_env; awk ends the last one.
user_environment() {
    local file
    for file in ~/.deepspeed_env .deepspeed_env; do
        [ ! -r "$file" ] || awk '/^[^#]*=/' "$file"
    done
}

# passed_environment: prints the variables for the other hosts as NAME=VALUE.
passed_environment() {
    env | awk -v passed="$PASSED" -v kept="^[^=]*($SECRET)|://[^/@]+@|^DS_ENV_FILE=" '$0 ~ passed && $0 !~ kept'
}
