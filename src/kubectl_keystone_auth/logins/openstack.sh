# Has the openstack client get a token and prints an ExecCredential for kubectl. It needs sh and openstack.
# Who logs in is the client's affair: a cloud of clouds.yaml (OS_CLOUD), or OS_… variables.
{ set +vxeua && set -f && unset -f command openstack cat printf read; } 2>/dev/null

end() {
    printf 'login at Keystone: %s\n' "$2" >&2
    exit "$1"
}

# What a shell was sourced for would be mixed with the cloud, or with the credential, that the kubeconfig means.
others='OS_USERNAME OS_USER_ID OS_USER_DOMAIN_NAME OS_USER_DOMAIN_ID OS_PASSWORD OS_PASSCODE OS_TOKEN OS_PROJECT_NAME
OS_PROJECT_ID OS_PROJECT_DOMAIN_NAME OS_PROJECT_DOMAIN_ID OS_TENANT_NAME OS_TENANT_ID OS_DOMAIN_NAME OS_DOMAIN_ID
OS_DEFAULT_DOMAIN OS_SYSTEM_SCOPE OS_TRUST_ID'
if [ -n "${OS_CLOUD-}" ]; then
    # shellcheck disable=SC2086 # several names
    unset $others OS_AUTH_TYPE OS_AUTH_URL OS_APPLICATION_CREDENTIAL_ID OS_APPLICATION_CREDENTIAL_SECRET
elif [ "${OS_AUTH_TYPE-}" = v3applicationcredential ]; then
    # shellcheck disable=SC2086
    unset $others
fi

command -v openstack >/dev/null || end 2 'there is no openstack client on the PATH'
said=$(command openstack token issue -f shell -c expires -c id -c project_id) ||
    end 3 'openstack token issue gives no token'
token='' project='' ends=''
while IFS= read -r line; do
    value=${line#*\"} value=${value%\"*}
    case $line in
    id=*) token=$value ;;
    project_id=*) project=$value ;;
    expires=*) ends=$value ;;
    esac
done <<END_OF_TOKEN
$said
END_OF_TOKEN
case $token in '' | *[!A-Za-z0-9_.=-]*) end 5 'openstack token issue printed no token that can be used' ;; esac
case $project in '' | None) end 4 'the token is not for a project, so that no cluster would take it' ;; esac
ends=${ends%+0000}
case $ends in
[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]) ends=',"expirationTimestamp":"'$ends'Z"' ;;
*) ends='' ;;
esac
command cat <<END_OF_CREDENTIAL
{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"$token"$ends}}
END_OF_CREDENTIAL
