#!/bin/sh
# A CA, and a certificate for the server that it has signed; with a second name, one for a client too.
#
#     ./certificates.sh DIRECTORY SERVER-NAME [CLIENT-NAME]
#
# The client needs ca.pem; ca.key belongs on no server at all.
set -eu
umask 077

[ $# -ge 2 ] || { sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2; }
cd "$1"

key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key"; }

# issue FILE NAME USAGE
issue() {
    key "$1"
    printf '%s\n' "subjectAltName=DNS:$2" "basicConstraints=critical,CA:FALSE" \
        "keyUsage=critical,digitalSignature" "extendedKeyUsage=$3" >"$1.ext"
    openssl req -new -key "$1.key" -subj "/CN=$2" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 398 \
        -extfile "$1.ext" -out "$1.pem" 2>/dev/null
    rm "$1.csr" "$1.ext"
}

key ca
openssl req -x509 -new -key ca.key -subj "/CN=rsync CA" -days 3650 \
    -addext keyUsage=critical,keyCertSign,cRLSign -out ca.pem
issue server "$2" serverAuth
[ $# -lt 3 ] || issue client "$3" clientAuth
