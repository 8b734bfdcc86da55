# Logs in to Keystone with an application credential and prints an ExecCredential for kubectl. It needs what Windows has:
# PowerShell 5.1. No profile is read, no module loaded (a PSModulePath of PowerShell 7 would bring the wrong ones), no proxy
# used, no redirect followed, and no secret is in arguments. There is no double quote in here either: Windows takes a
# command line apart by those.
$ErrorActionPreference = 'Stop'
$quote = [string] [char] 34

function Stop-Login([int] $Code, [string] $Message) {
    [Console]::Error.WriteLine('login at Keystone: ' + ($Message -replace '[\x00-\x1f\x7f]+', ' '))
    [Environment]::Exit($Code)
}

# JSON of ours, with ~ in the place of quotes.
function Get-Json([string] $Text) {
    return $Text.Replace('~', $quote)
}

# Somebody's text as JSON writes it, in ASCII alone.
function Get-Quoted([string] $Text) {
    $made = [Text.StringBuilder]::new()
    foreach ($char in $Text.ToCharArray()) {
        $number = [int] $char
        if ($number -lt 32 -or $number -gt 126 -or $number -eq 34 -or $number -eq 92) {
            [void] $made.Append('\u' + $number.ToString('x4'))
        } else {
            [void] $made.Append($char)
        }
    }
    return $quote + $made.ToString() + $quote
}

$url = [Environment]::GetEnvironmentVariable('OS_AUTH_URL')
$id = [Environment]::GetEnvironmentVariable('OS_APPLICATION_CREDENTIAL_ID')
$secret = [Environment]::GetEnvironmentVariable('OS_APPLICATION_CREDENTIAL_SECRET')
$pem = [Environment]::GetEnvironmentVariable('KEYSTONE_CA')
if (-not $id -or -not $secret) {
    Stop-Login 2 'there is no application credential: give OS_APPLICATION_CREDENTIAL_ID and OS_APPLICATION_CREDENTIAL_SECRET in the kubeconfig'
}
if ($url -cnotmatch '^https?://') { Stop-Login 2 'OS_AUTH_URL in the kubeconfig is no https:// URL' }
$body = (Get-Json '{~auth~:{~identity~:{~methods~:[~application_credential~],~application_credential~:{~id~:') +
    (Get-Quoted $id) + (Get-Json ',~secret~:') + (Get-Quoted $secret) + '}}}}'

try {
    if ([int] [Net.ServicePointManager]::SecurityProtocol -ne 0) {
        # Where it is not the system that chooses, an old .NET does not think of TLS 1.2.
        [Net.ServicePointManager]::SecurityProtocol = [Net.ServicePointManager]::SecurityProtocol -bor [Net.SecurityProtocolType]::Tls12
    }
    $request = [Net.HttpWebRequest] [Net.WebRequest]::Create($url + '/auth/tokens?nocatalog')
    $request.Method = 'POST'
    $request.ContentType = 'application/json'
    $request.ServicePoint.Expect100Continue = $false
    $request.Proxy = [Net.WebProxy]::new()
    $request.AllowAutoRedirect = $false
    $request.Timeout = 30000
    $request.ReadWriteTimeout = 30000
    if ($pem) {
        # The CA that the kubeconfig has, and no other: the chain has to end at one of its certificates.
        $authorities = [Security.Cryptography.X509Certificates.X509Certificate2Collection]::new()
        foreach ($part in [regex]::Matches($pem, '-----BEGIN CERTIFICATE-----([^-]+)-----END')) {
            $raw = [Convert]::FromBase64String(($part.Groups[1].Value -replace '\s', ''))
            [void] $authorities.Add([Security.Cryptography.X509Certificates.X509Certificate2]::new($raw))
        }
        $request.ServerCertificateValidationCallback = {
            param($from, $certificate, $given, $problems)
            # Another host's name, or no certificate at all.
            if (([int] $problems -bor 4) -ne 4) { return $false }
            $chain = [Security.Cryptography.X509Certificates.X509Chain]::new()
            $chain.ChainPolicy.RevocationMode = [Security.Cryptography.X509Certificates.X509RevocationMode]::NoCheck
            $chain.ChainPolicy.VerificationFlags =
                [Security.Cryptography.X509Certificates.X509VerificationFlags]::AllowUnknownCertificateAuthority
            [void] $chain.ChainPolicy.ApplicationPolicy.Add([Security.Cryptography.Oid]::new('1.3.6.1.5.5.7.3.1'))
            $chain.ChainPolicy.ExtraStore.AddRange($authorities)
            foreach ($element in $given.ChainElements) { [void] $chain.ChainPolicy.ExtraStore.Add($element.Certificate) }
            if (-not $chain.Build([Security.Cryptography.X509Certificates.X509Certificate2]::new($certificate))) { return $false }
            $top = $chain.ChainElements[$chain.ChainElements.Count - 1].Certificate
            foreach ($authority in $authorities) {
                if ([Convert]::ToBase64String($authority.RawData) -ceq [Convert]::ToBase64String($top.RawData)) { return $true }
            }
            return $false
        }.GetNewClosure()
    }
    $bytes = [Text.Encoding]::ASCII.GetBytes($body)
    $request.ContentLength = $bytes.Length
    $stream = $request.GetRequestStream()
    $stream.Write($bytes, 0, $bytes.Length)
    $stream.Close()
    $response = $request.GetResponse()
} catch {
    $reason = $_.Exception
    while ($reason.InnerException -and $reason -isnot [Net.WebException]) { $reason = $reason.InnerException }
    if ($reason -isnot [Net.WebException]) { Stop-Login 5 ($url + ' cannot be asked: ' + $reason.Message) }
    if (-not $reason.Response) {
        if ('TrustFailure', 'SecureChannelFailure' -contains [string] $reason.Status) {
            Stop-Login 6 ('the certificate of ' + $url + ' is not trusted, or there is no TLS there')
        }
        Stop-Login 5 ($url + ' does not answer: ' + $reason.Message)
    }
    $response = $reason.Response
}
try {
    $status = [int] $response.StatusCode
    $token = [string] $response.Headers['X-Subject-Token']
    $answer = [IO.StreamReader]::new($response.GetResponseStream(), [Text.Encoding]::UTF8).ReadToEnd()
} catch {
    Stop-Login 5 ($url + ' broke off its answer')
}

if ($status -eq 201) {
    if ($token -cnotmatch '\A[A-Za-z0-9_.=-]+\z') { Stop-Login 5 ($url + ' gives no token that can be used: is it Keystone?') }
} elseif ($status -ge 300 -and $status -lt 400) {
    Stop-Login 5 ($url + ' redirects, and no secret is sent to another place: the kubeconfig needs the URL of Keystone itself')
} elseif ($answer -cnotmatch (Get-Json '~error~[\s\S]*~message~\s*:\s*~([^~]*)')) {
    Stop-Login 5 ('something else than Keystone answers at ' + $url + ', with status ' + $status)
} elseif (401, 403, 404 -contains $status) {
    Stop-Login 3 ('Keystone refuses the application credential: ' + $Matches[1])
} else {
    Stop-Login 5 ('Keystone cannot answer now (' + $status + '): ' + $Matches[1])
}

# kubectl asks again when the token ends.
$ends = ''
if ($answer -cmatch (Get-Json '~expires_at~\s*:\s*~(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)[.Z]')) {
    $ends = (Get-Json ',~expirationTimestamp~:~') + $Matches[1] + 'Z' + $quote
}
# Not to the pipeline: what goes there may be kept in a transcript.
[Console]::Out.WriteLine((Get-Json '{~apiVersion~:~client.authentication.k8s.io/v1~,~kind~:~ExecCredential~,~status~:{~token~:') +
    $quote + $token + $quote + $ends + '}}')
