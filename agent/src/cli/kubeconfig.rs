//! `berth kubeconfig`: lets kubectl in.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::config::Kubeconfig;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::{Value, json};

use super::failure::Usage;
use super::{client, output, resource};
use crate::api::ADMINS;
use crate::facts::ROOT_ANNOTATION;
use crate::pki::SIGNER;
use crate::store::Kind;

const JSON: &str = "application/json";

/// Words of `berth kubeconfig`.
#[derive(Args, Debug)]
pub struct KubeconfigArgs {
    /// How kubectl reaches the node [default: as the agent listens]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Name of the user, for whom the certificate is made
    #[arg(long, value_name = "NAME", default_value = "berth-admin")]
    user: String,
    /// How long the certificate is good for, a year at most
    #[arg(long, value_name = "DURATION", default_value = "8760h")]
    duration: String,
}

/// Has a certificate signed and prints a kubeconfig with it. The key is made here and never leaves this process but by that.
pub async fn run(client: &kube::Client, args: &KubeconfigArgs) -> anyhow::Result<ExitCode> {
    let seconds = seconds(&args.duration)?;
    args.server.as_deref().map(check_server).transpose()?;
    let mut cluster = cluster(client).await?;
    if let Some(server) = &args.server {
        cluster["server"] = json!(server);
    }
    let key = KeyPair::generate().context("make a key")?;
    let certificate = certificate(client, &args.user, seconds, &key).await?;
    let node = node(client).await?;
    let name = format!("{}@{node}", args.user);
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {},
        "clusters": [{"name": node, "cluster": cluster}],
        "users": [{"name": name, "user": {
            "client-certificate-data": STANDARD.encode(certificate),
            "client-key-data": STANDARD.encode(key.serialize_pem()),
        }}],
        "contexts": [{"name": name, "context": {"cluster": node, "user": name}}],
        "current-context": name,
    });
    output::print(&serde_yaml::to_string(&kubeconfig)?)?;
    Ok(ExitCode::SUCCESS)
}

fn seconds(text: &str) -> Result<i32, Usage> {
    let wrong = || Usage(format!("--duration: {text:?} is not between 10m and 8760h (such as 24h)"));
    let span: jiff::Span = text.parse().map_err(|_| wrong())?;
    let days = jiff::SpanRelativeTo::days_are_24_hours();
    let seconds = span.to_duration(days).map_err(|_| wrong())?.as_secs();
    i32::try_from(seconds).ok().filter(|seconds| (600..=365 * 86_400).contains(seconds)).ok_or_else(wrong)
}

/// Refuses what kubectl could not use, or would use without TLS.
fn check_server(text: &str) -> Result<(), Usage> {
    let url: Option<http::Uri> = text.parse().ok();
    let good = url.is_some_and(|url| {
        url.scheme_str() == Some("https") && url.host().is_some_and(|host| !host.is_empty())
    });
    if good { Ok(()) } else { Err(Usage(format!("--server: {text:?} is not of the form https://HOST:PORT"))) }
}

/// Address and authority of the API, as the agent announces them.
async fn cluster(client: &kube::Client) -> anyhow::Result<Value> {
    let path = resource::path(Kind::ConfigMap, Some("kube-public"), Some("cluster-info"));
    let Some(info) = client::find::<ConfigMap>(client, &path).await? else {
        bail!(
            "the agent serves its API on its socket only; start it with --api-address ADDR:PORT (or set apiAddress) \
             for kubectl"
        );
    };
    let text = info.data.and_then(|mut data| data.remove("kubeconfig")).unwrap_or_default();
    let announced = Kubeconfig::from_yaml(&text).context("read the ConfigMap kube-public/cluster-info")?;
    let cluster = announced.clusters.into_iter().next().and_then(|named| named.cluster);
    Ok(json!(cluster.context("the ConfigMap kube-public/cluster-info names no cluster")?))
}

async fn node(client: &kube::Client) -> anyhow::Result<String> {
    let nodes: Value = client::get(client, &resource::path(Kind::Node, None, None), JSON).await?;
    // Others may have joined it; the state folder is what it says of itself.
    let mut all = nodes["items"].as_array().into_iter().flatten();
    let own = all.find(|node| !node["metadata"]["annotations"][ROOT_ANNOTATION].is_null());
    Ok(own.and_then(|node| node["metadata"]["name"].as_str()).unwrap_or("berth").to_owned())
}

/// Asks for a certificate, approves it (whoever may open the socket may do that), and takes it.
async fn certificate(
    client: &kube::Client,
    user: &str,
    seconds: i32,
    key: &KeyPair,
) -> anyhow::Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    params.distinguished_name.push(DnType::OrganizationName, ADMINS);
    let asked = params.serialize_request(key).context("make the request for a certificate")?;
    let asked = asked.pem().context("make the request for a certificate")?;
    let request = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "kubeconfig-"},
        "spec": {"request": STANDARD.encode(asked), "signerName": SIGNER, "expirationSeconds": seconds,
            "usages": ["client auth", "digital signature", "key encipherment"]},
    });
    let collection = resource::path(Kind::CertificateSigningRequest, None, None);
    let mut request = client::send_json(client, "POST", &collection, JSON, &request).await?;
    let name =
        request["metadata"]["name"].as_str().context("the agent has given the request no name")?.to_owned();
    let path = resource::path(Kind::CertificateSigningRequest, None, Some(&name));
    request["status"] = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "BerthKubeconfig",
        "message": "asked for by whoever may open the agent's socket"}]});
    let approved = client::send_json(client, "PUT", &format!("{path}/approval"), JSON, &request).await;
    // What was not answered is no use to anybody either.
    let removed = client::send_json(client, "DELETE", &path, JSON, &json!({})).await;
    let approved: CertificateSigningRequest = serde_json::from_value(approved?)?;
    removed?;
    let status = approved.status.unwrap_or_default();
    if let Some(failed) = status.conditions.iter().flatten().find(|condition| condition.type_ == "Failed") {
        bail!("the agent did not sign: {}", failed.message.as_deref().unwrap_or("no reason given"));
    }
    let certificate = status.certificate.context("the agent did not sign, and said nothing")?;
    String::from_utf8(certificate.0).context("the certificate is no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_spoken_to_over_tls() {
        assert!(check_server("https://node.example:6443").is_ok());
        assert!(check_server("https://[fd00::1]:6443/").is_ok());
        for wrong in ["", "node:6443", "http://node:6443", "https://", "nonsense"] {
            assert!(check_server(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(seconds("24h").ok(), Some(86_400));
        assert_eq!(seconds("365d").ok(), Some(31_536_000));
        assert_eq!(seconds("90m").ok(), Some(5_400));
        for wrong in ["", "1s", "9m59s", "8761h", "-24h", "soon", "99999999999h"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
