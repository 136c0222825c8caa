#!/bin/sh
# Makes what the Secret etcd-tls is to have: an authority, and by it one certificate that all members
# show to clients and to each other. Needs openssl 1.1.1 or newer. Keep ca.key, out of the cluster,
# to make the next certificate: this one ends after a year, and members take a new one without a
# restart.
#
#     sh deploy/kubernetes/etcd/certificates.sh FOLDER
set -eu
umask 077
mkdir -p "$1"
cd "$1"

if [ ! -e ca.key ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
    -subj "/CN=etcd authority" -addext keyUsage=critical,keyCertSign,cRLSign \
    -keyout ca.key -out ca.crt
fi
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=etcd" \
  -keyout tls.key -out tls.csr
cat >tls.ext <<END
subjectAltName = DNS:etcd-0.etcd, DNS:etcd-1.etcd, DNS:etcd-2.etcd
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth, clientAuth
END
openssl x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 \
  -extfile tls.ext -out tls.crt
rm tls.csr tls.ext
