//! Another certificate before the one in use expires.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Access, Cluster, Pause, chance};

/// The longest sleep: a machine's clock may be set.
const LOOK: Duration = Duration::from_secs(3600);

/// How long nothing is asked after a certificate that was as good as used up when it came: a signer's clock may be wrong, or its
/// certificates very short.
const USED_UP: Duration = Duration::from_secs(60);

/// When a certificate is renewed, in seconds since 1970: after 70 to 90 % of its life, as a kubelet does.
pub(super) fn renewal((begins, ends): (i64, i64), chance: f64) -> i64 {
    let life = ends.saturating_sub(begins).max(0) as f64;
    begins + (life * (0.7 + 0.2 * chance)).round() as i64
}

impl Cluster {
    /// Renews the node's own certificate for as long as the agent runs, where it was got by bootstrapping.
    pub(super) async fn keep_certificate(self: Arc<Self>, access: Arc<Access>) {
        if self.config.bootstrap.is_none() || !self.config.rotate {
            return;
        }
        let mut pause = Pause::new();
        while let Some(validity) = access.validity() {
            sleep_until(renewal(validity, chance())).await;
            loop {
                match self.renew_certificate(&access).await {
                    Ok(()) => {
                        pause.reset();
                        if access.validity().is_some_and(|validity| renewal(validity, 0.0) <= now()) {
                            tracing::warn!(
                                "the node's new certificate is to be renewed already; look at the signer's clock and at how long its certificates are good"
                            );
                            tokio::time::sleep(USED_UP).await;
                        }
                        break;
                    }
                    Err(error) => {
                        tracing::warn!("cannot renew the node's certificate: {error:#}; trying again");
                        tokio::time::sleep(pause.take()).await;
                    }
                }
            }
        }
    }

    async fn renew_certificate(&self, access: &Access) -> anyhow::Result<()> {
        // With one that has expired nobody is believed: the node is as new as at its first join.
        let client = match &self.config.bootstrap {
            Some(bootstrap) if access.has_expired() => Access::open(bootstrap).await?.client,
            _ => access.client.clone(),
        };
        let issued = self.request_client(client).await?;
        // In use first: a disk that is full must not leave the node with one that expires.
        access.show(&issued.certificate, &issued.key)?;
        self.store(&self.config.kubeconfig, &issued).await;
        tracing::info!("the node has a new certificate");
        Ok(())
    }
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

/// Sleeps until the clock says so.
pub(super) async fn sleep_until(at: i64) {
    loop {
        let left = at - now();
        let Ok(left @ 1..) = u64::try_from(left) else { return };
        tokio::time::sleep(Duration::from_secs(left).min(LOOK)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::renewal;

    #[test]
    fn between_seventy_and_ninety_per_cent_of_its_life() {
        assert_eq!(renewal((1000, 2000), 0.0), 1700);
        assert_eq!(renewal((1000, 2000), 1.0), 1900);
    }
}
