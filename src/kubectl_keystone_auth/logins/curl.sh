# Logs in to Keystone with an application credential and prints an ExecCredential for kubectl. It needs sh and curl.
# Nothing counts that a shell may bring along: tracing, functions, curl's own files, proxies. No secret is in arguments.
{ set +vxeua && set -f && unset -f command curl cat printf read; } 2>/dev/null
LC_ALL=C IFS=' ' PATH=/usr/bin:/bin:${PATH-}
unset SSLKEYLOGFILE
umask 077

end() {
    printf 'login at Keystone: %s\n' "$2" >&2
    exit "$1"
}

# JSON takes no character below the space; $controls has those that there is no shorter way to write.
controls=$(printf '\001\002\003\004\005\006\007\010\013\014\016\017\020\021\022\023\024\025\026\027\030\031\032\033\034\035\036\037')
return=$(printf '\r') tab=$(printf '\t') newline='
'
quote() {
    rest=$1 quoted='"'
    while :; do
        char=${rest%"${rest#?}"} rest=${rest#?}
        case $char in
        '') break ;;
        '"' | \\) quoted=$quoted\\$char ;;
        "$newline") quoted=$quoted\\n ;;
        "$return") quoted=$quoted\\r ;;
        "$tab") quoted=$quoted\\t ;;
        *) case $controls in *"$char"*) quoted=$quoted$(printf '\\u%04x' "'$char") ;; *) quoted=$quoted$char ;; esac ;;
        esac
    done
    quoted=$quoted'"'
}

url=${OS_AUTH_URL-} ca=${KEYSTONE_CA-}
id=${OS_APPLICATION_CREDENTIAL_ID-} secret=${OS_APPLICATION_CREDENTIAL_SECRET-}
unset OS_APPLICATION_CREDENTIAL_SECRET
case $id/$secret in
/* | */) end 2 'there is no application credential: give OS_APPLICATION_CREDENTIAL_ID and OS_APPLICATION_CREDENTIAL_SECRET, in the kubeconfig or by sourcing the openrc file of one' ;;
esac
case $url in
https://*) scheme=https ;;
http://*) scheme=http ;;
*) end 2 'OS_AUTH_URL in the kubeconfig is no https:// URL' ;;
esac
command -v curl >/dev/null || end 2 'there is no curl'
quote "$id"
body='{"auth":{"identity":{"methods":["application_credential"],"application_credential":{"id":'$quoted
quote "$secret"
body=$body',"secret":'$quoted'}}}}'

answer=$(
    command curl -q --silent --globoff --noproxy '*' --proto "=$scheme" --connect-timeout 10 --max-time 30 \
        ${ca:+--cacert /dev/fd/3} --header 'Content-Type: application/json' --header 'Expect:' \
        --dump-header - --data-binary @- --url "$url/auth/tokens?nocatalog" 3<<END_OF_CA <<END_OF_BODY
$ca
END_OF_CA
$body
END_OF_BODY
)
case $? in
0) ;;
6) end 5 "the host of $url is not known" ;;
7) end 5 "nothing listens at $url, or no way leads there" ;;
28) end 5 "$url does not answer in time" ;;
35 | 60) end 6 "the certificate of $url is not trusted, or there is no TLS there" ;;
77) end 6 'the CA in the kubeconfig (KEYSTONE_CA) cannot be read' ;;
*) end 5 "curl gets no answer from $url" ;;
esac

status='' token='' body='' part=head
while IFS= read -r line; do
    case $part$line in
    body*) body=$body$line ;;
    head | head"$return") case $status in 1??) ;; *) part=body ;; esac ;;
    headHTTP/*) status=${line#* } status=${status%%[!0-9]*} token='' ;;
    head[Xx]-[Ss][Uu][Bb][Jj][Ee][Cc][Tt]-[Tt][Oo][Kk][Ee][Nn]:*)
        token=${line#*:} token=${token#"${token%%[!"$tab" ]*}"} token=${token%%["$return$tab" ]*} ;;
    esac
done <<END_OF_ANSWER
$answer
END_OF_ANSWER

case $status/$token in
201/ | 201/*[!A-Za-z0-9_.=-]*) end 5 "$url gives no token that can be used: is it Keystone?" ;;
201/*) ;;
3??/*) end 5 "$url redirects, and no secret is sent to another place: the kubeconfig needs Keystone's own URL" ;;
*)
    case $body in
    *'"error"'*'"message"'*) ;;
    *) end 5 "something else than Keystone answers at $url, with status $status" ;;
    esac
    message=${body#*'"message"'} message=${message#*'"'}
    quote "${message%%'"'*}"
    case $status in
    401 | 403 | 404) end 3 "Keystone refuses the application credential: $quoted" ;;
    *) end 5 "Keystone cannot answer now ($status): $quoted" ;;
    esac
    ;;
esac

# kubectl asks again when the token ends. No name that a user can choose has a bare quote in JSON, so this is Keystone's.
case $body in *'"expires_at"'*) ends=${body#*'"expires_at"'} ends=${ends#*'"'} ends=${ends%%[.Z\"]*}Z ;; *) ends='' ;; esac
case $ends in
[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z) ends=',"expirationTimestamp":"'$ends'"' ;;
*) ends='' ;;
esac
# Not by printf, which is a program with arguments in some shells.
command cat <<END_OF_CREDENTIAL
{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"$token"$ends}}
END_OF_CREDENTIAL
