//! Waiting to lead: whoever finds nobody leading makes the key, and etcd lets one of them.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use super::Lead;
use super::lead::boot_ms;
use crate::store::etcd::{Etcd, Keys, Link, PATIENCE, Seen, read, text};
use crate::store::{Contents, EtcdAddress, History, StoreError};

/// So often it is looked who leads.
const EVERY: Duration = Duration::from_millis(100);

/// For so long one that stands by waits for what it reads: somebody waits for the answer.
const LOOK: Duration = Duration::from_secs(2);

/// A scheduler that wants to lead.
pub struct Candidate {
    link: Arc<Link>,
    keys: Keys,
    /// URL under which clients and agents reach this scheduler.
    advertise: String,
    lease: Duration,
}

/// What the one that was elected has.
pub struct Won {
    /// The store, until the lead is lost.
    pub store: Etcd,
    /// Says that the lead is lost, or never anything.
    pub lost: oneshot::Receiver<StoreError>,
    lead: Arc<Lead>,
    link: Arc<Link>,
}

impl Candidate {
    /// `lease`: after so long without a sign of life another one leads; etcd counts in whole seconds, two at least, and
    /// what is beyond them is left out.
    ///
    /// # Errors
    /// When no connection can be prepared.
    pub fn new(address: &EtcdAddress, advertise: &str, lease: Duration) -> Result<Candidate, StoreError> {
        let (link, keys) = (Link::open(address)?, Keys::new(&address.prefix));
        let lease = Duration::from_secs(lease.as_secs().max(2));
        Ok(Candidate { link, keys, advertise: advertise.into(), lease })
    }

    /// The store as others write it: its history, and what reads all else.
    pub fn look(&self) -> (Arc<dyn History>, impl FnMut() -> Result<Contents, StoreError> + Send + 'static) {
        let seen = Arc::new(Seen::new(self.link.clone(), self.keys.clone(), LOOK));
        (seen.clone(), move || seen.live())
    }

    /// Waits until this scheduler leads. Meanwhile `leader` is the URL of the one that does; empty: there is none.
    ///
    /// # Errors
    /// When etcd refuses. While it is away, it is waited for.
    pub async fn campaign(&self, leader: &watch::Sender<String>) -> Result<Won, StoreError> {
        let mut was_away = false;
        loop {
            match self.leader().await {
                Ok(found) => {
                    if std::mem::take(&mut was_away) {
                        tracing::info!("etcd answers again");
                    }
                    let address = found.unwrap_or_default();
                    let is_news = leader.send_if_modified(|known| {
                        let is_news = *known != address;
                        known.clone_from(&address);
                        is_news
                    });
                    if is_news && !address.is_empty() {
                        tracing::info!("standing by: the scheduler at {address} leads");
                    }
                    if address.is_empty()
                        && let Some(won) = self.run().await?
                    {
                        return Ok(won);
                    }
                }
                Err(error @ StoreError::Away { .. }) => {
                    leader.send_replace(String::new());
                    if !std::mem::replace(&mut was_away, true) {
                        tracing::warn!("{error}; waiting for it");
                    }
                }
                Err(error) => return Err(error),
            }
            sleep(EVERY).await;
        }
    }

    /// The URL of the scheduler that leads now, if there is one.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn leader(&self) -> Result<Option<String>, StoreError> {
        let found = self.link.get(self.keys.of("leader"), GetOptions::new(), PATIENCE).await?;
        Ok(found.kvs().first().map(|leader| String::from_utf8_lossy(leader.value()).into_owned()))
    }

    /// Tries to be the one. `None`: another one was faster, or it is unknown.
    ///
    /// # Errors
    /// When etcd refuses.
    pub async fn run(&self) -> Result<Option<Won>, StoreError> {
        let asked_ms = boot_ms();
        let mut client = self.link.client();
        let lease = match timeout(self.lease, client.lease_grant(self.lease.as_secs() as i64, None)).await {
            Ok(Ok(granted)) => granted.id(),
            Ok(Err(error)) => {
                tracing::debug!("no lease: {}", text(&error));
                return Ok(None);
            }
            Err(_) => return Ok(None),
        };
        let key = self.keys.of("leader");
        let nobody = [Compare::create_revision(key.clone(), CompareOp::Equal, 0)];
        let options = PutOptions::new().with_lease(lease);
        let put = [TxnOp::put(key.clone(), self.advertise.clone(), Some(options)), read(&key)];
        let transaction = Txn::new().when(nobody).and_then(put).or_else([read(&key)]);
        let answer = match self.link.transact(transaction, self.lease).await {
            Ok(answer) => answer,
            // The lease may have ended meanwhile.
            Err(error) => {
                tracing::debug!("not elected: {error}");
                _ = timeout(Duration::from_secs(1), client.lease_revoke(lease)).await;
                return Ok(None);
            }
        };
        let found = answer.op_responses().into_iter().find_map(|answer| match answer {
            TxnOpResponse::Get(mut answer) => answer.take_kvs().into_iter().next(),
            _ => None,
        });
        // The key is this one's also if it was made by an attempt whose answer was lost.
        let Some(key) = found.filter(|key| key.lease() == lease) else {
            _ = timeout(Duration::from_secs(1), client.lease_revoke(lease)).await;
            return Ok(None);
        };
        let lead = Arc::new(Lead::new(key.create_revision(), lease, self.lease, asked_ms));
        let (told, lost) = oneshot::channel();
        self.link.spawn(lead.clone().keep(self.link.clone(), self.keys.clone(), told));
        let store = Etcd::new(self.link.clone(), self.keys.clone(), lead.clone());
        Ok(Some(Won { store, lost, lead, link: self.link.clone() }))
    }
}

impl Won {
    /// Takes the store, and leaves what gives the lead up.
    pub fn split(self) -> (Etcd, oneshot::Receiver<StoreError>, Resignation) {
        (self.store, self.lost, Resignation { lead: self.lead, link: self.link })
    }
}

/// Gives the lead up.
pub struct Resignation {
    lead: Arc<Lead>,
    link: Arc<Link>,
}

impl Resignation {
    /// Another scheduler may lead at once.
    pub async fn resign(self) {
        self.lead.resign(&self.link).await;
    }
}
