#!/bin/sh
# The whole of this directory, end to end on this machine: rsyncd, TLS before it, TLS beside the client.
# Everything is in a temporary directory, and gone at the end. Nobody needs to be root.
#
#     ./try.sh
#
# FASTFWD is the command (fastfwd), PORTS are three free ones: TLS, rsyncd, the client's.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
fastfwd=${FASTFWD:-fastfwd}
# shellcheck disable=SC2086
set -- ${PORTS:-18740 18730 18731}
tls=$1 daemon=$2 plain=$3

work=$(mktemp -d)
pids=
finish() {
    status=$?
    trap - EXIT
    set +e
    trap '' PIPE
    # shellcheck disable=SC2086
    [ -z "$pids" ] || { kill $pids 2>/dev/null; wait; }
    if [ "$status" -ne 0 ]; then
        for file in "$work"/*.said; do echo "== ${file##*/}"; cat "$file"; done >&2
    fi
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM PIPE

# start NAME COMMAND...: in the background, until finish.
start() {
    name=$1; shift
    "$@" >"$work/$name.said" 2>&1 </dev/null &
    pids="$pids $!"
}

# ready FILE WORD: wait until the file has the word, ten seconds at most.
ready() {
    count=0
    until grep -q "$2" "$1" 2>/dev/null; do
        count=$((count + 1))
        [ $count -lt 200 ] || { echo "$2 was not said in $1" >&2; return 1; }
        sleep 0.05
    done
}

say() { printf '%-66s' "$1"; }
good() { echo ok; }
# refused WORDS COMMAND...: it fails, and says so.
refused() {
    words=$1; shift
    if "$@" >"$work/refused" 2>&1; then echo "it was let in"; return 1; fi
    grep -q "$words" "$work/refused" || { cat "$work/refused"; return 1; }
    good
}

cd "$work"
mkdir public incoming tree
head -c 3000000 /dev/urandom >public/large
echo hello >public/small
head -c 2000000 /dev/urandom >tree/more

"$here/certificates.sh" "$work" localhost

# The files of this directory, with other ports and places.
sed -e "s/^::  874  127.0.0.1  873/127.0.0.1 $tls 127.0.0.1 $daemon/" "$here/server.conf" >server.conf
sed -e "s/^127.0.0.1  873  rsync.example.org  874/127.0.0.1 $plain localhost $tls/" "$here/client.conf" >client.conf
# Only root can change accounts; what is in the temporary directory is its own.
account='s/^[ug]id = .*/#/'
[ "$(id -u)" -ne 0 ] || account='s/^\([ug]id\) = .*/\1 = 0/'
# hosts allow: us, by the address with which the client end comes.
sed -e "s/^port = .*/port = $daemon/" -e "s|/srv/rsync|$work|" -e 's/^use chroot.*/use chroot = no/' \
    -e "$account" \
    -e 's/hosts allow = .*/hosts allow = 127.0.0.5/' "$here/rsyncd.conf" >rsyncd.conf
printf '%s\n' "log file = $work/rsyncd.said" "lock file = $work/lock" >global
cat rsyncd.conf >>global
mv global rsyncd.conf
# Two clients' machines: 127.0.0.5, and a stranger.
sed -e 's/tls-connect,/tls-connect, src=127.0.0.5,/' client.conf >known.conf
sed -e "s/127.0.0.1 $plain/127.0.0.7 $plain/" -e 's/tls-connect,/tls-connect, src=127.0.0.6,/' client.conf >stranger.conf

start daemon rsync --daemon --no-detach --config="$work/rsyncd.conf"
for each in server known stranger; do
    # shellcheck disable=SC2086
    start "$each" $fastfwd -f -c "$work/$each.conf"
done
for each in server known stranger; do ready "$work/$each.said" ready:; done
ready "$work/rsyncd.said" "listening on port"

us=rsync://127.0.0.1:$plain them=rsync://127.0.0.7:$plain

say "the modules, through TLS and TLS"
rsync "$us/" >list
grep -q '^public' list
grep -q '^incoming' list
good
say "download"
rsync -a "$us/public/" got
cmp public/large got/large
cmp public/small got/small
good
say "upload"
rsync -a tree/ "$us/incoming/"
cmp tree/more incoming/more
good
say "what was brought cannot be taken"
refused "write only" rsync "$us/incoming/more" taken
say "nor listed"
refused "write only" rsync "$us/incoming/"
say "what is there to take cannot be written"
refused "read only" rsync tree/more "$us/public/"
say "a stranger may take"
rsync -a "$them/public/small" taken
cmp public/small taken
good
say "but not bring: hosts allow means the client behind the forwarder"
refused "denied" rsync tree/more "$them/incoming/"
say "the daemon has an address of this machine only"
refused "Connection refused" rsync "rsync://127.0.0.2:$daemon/"
say "and no word for who comes to it without the forwarder"
refused "rsync error" rsync --timeout=5 "rsync://127.0.0.1:$daemon/"
say "rsyncd's log has the clients' addresses"
grep -q "127.0.0.5" rsyncd.said
grep -q "127.0.0.6" rsyncd.said
good
