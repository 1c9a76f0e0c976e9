//! Being the one that leads: a key in etcd that goes with its lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{Error, GetOptions, KeyValue};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::store::StoreError;
use crate::store::etcd::{Keys, Link, PATIENCE};

/// So many times within its length a lease is renewed: what is left of it when a leader dies is most of it, and one or two
/// renewals may be lost. etcd's leader answers them by itself, without a write.
const RENEWALS: u32 = 6;

/// What a scheduler that was elected holds.
#[derive(Debug)]
pub struct Lead {
    /// Of the key's creation. No other scheduler's key has it, earlier or later.
    pub revision: i64,
    lease: i64,
    length: Duration,
    term: AtomicU64,
    /// Until then, by the clock of [`boot_ms`], the lease has not ended.
    sure_until_ms: AtomicU64,
    is_given_up: AtomicBool,
}

impl Lead {
    /// `asked_ms`: when the lease was asked for, by the clock of [`boot_ms`].
    pub(crate) fn new(revision: i64, lease: i64, length: Duration, asked_ms: u64) -> Lead {
        let sure_until_ms = AtomicU64::new(asked_ms + length.as_millis() as u64);
        let (term, is_given_up) = (AtomicU64::new(0), AtomicBool::new(false));
        Lead { revision, lease, length, term, sure_until_ms, is_given_up }
    }

    /// Whether nobody else can have been elected yet.
    pub fn is_sure(&self) -> bool {
        boot_ms() < self.sure_until_ms.load(Ordering::Relaxed)
    }

    /// For so long etcd is waited for: until well after the lease has ended unless it was renewed, so that agents still
    /// find the next leader before their own leases end.
    pub(crate) fn patience(&self) -> Duration {
        let sure_until = Duration::from_millis(self.sure_until_ms.load(Ordering::Relaxed));
        let left = (sure_until + PATIENCE).saturating_sub(Duration::from_millis(boot_ms()));
        left.max(Duration::from_secs(2))
    }

    pub(crate) fn set_term(&self, term: u64) {
        self.term.store(term, Ordering::Relaxed);
    }

    /// The error of one that no longer leads. `leader`: the key of the one that does.
    pub(crate) fn fenced(&self, leader: Option<&KeyValue>) -> StoreError {
        let successor = match leader {
            Some(leader) => format!("the scheduler at {} leads", String::from_utf8_lossy(leader.value())),
            None => "its lease in etcd has ended".into(),
        };
        StoreError::Fenced { term: self.term.load(Ordering::Relaxed), successor }
    }

    /// Gives the lead up, so that another one need not wait for the end of the lease.
    pub(crate) async fn resign(&self, link: &Link) {
        self.is_given_up.store(true, Ordering::Relaxed);
        // If nobody hears of it, the lease ends by itself.
        _ = timeout(Duration::from_secs(1), link.client().lease_revoke(self.lease)).await;
    }

    /// Renews the lease until it is given up, or lost: that is told.
    pub(crate) async fn keep(
        self: Arc<Lead>,
        link: Arc<Link>,
        keys: Keys,
        lost: oneshot::Sender<StoreError>,
    ) {
        loop {
            sleep(self.length / RENEWALS).await;
            if self.is_given_up.load(Ordering::Relaxed) {
                return;
            }
            let asked_ms = boot_ms();
            match timeout(self.length / 3, link.client().lease_keep_alive(self.lease)).await {
                Ok(Ok(_)) => {
                    let sure_until_ms = asked_ms + self.length.as_millis() as u64;
                    self.sure_until_ms.store(sure_until_ms, Ordering::Relaxed);
                }
                // The lease may be unknown, or the answer have been cut off: the key says which.
                Ok(Err(Error::LeaseKeepAliveError(_))) => {
                    let found = link.get(keys.of("leader"), GetOptions::new(), PATIENCE).await;
                    let Ok(found) = found else { continue };
                    let leader = found.kvs().first();
                    if leader.is_none_or(|leader| leader.create_revision() != self.revision) {
                        if !self.is_given_up.load(Ordering::Relaxed) {
                            _ = lost.send(self.fenced(leader)); // The server may be ending.
                        }
                        return;
                    }
                }
                // Commits say whether etcd is away for too long.
                Ok(Err(error)) => tracing::debug!("the lease was not renewed: {error}"),
                Err(_) => tracing::debug!("the lease was not renewed: no answer"),
            }
        }
    }
}

/// Milliseconds of a clock that runs on while the machine sleeps.
pub(crate) fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}
