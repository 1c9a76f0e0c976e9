//! The store that outlives its scheduler's machine: every write is one transaction of etcd, on the condition that this
//! scheduler still leads and that its last commit is the last one.
//!
//! The latter makes it harmless to send a transaction twice: when an answer is lost, it is sent again, and what comes
//! back says whether the first one was carried out.

mod layout;
mod link;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aquifer_proto::store::{Kind, Row};
use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse};

use super::{Contents, EtcdAddress, FORMAT, History, Store, StoreError, frame};
use crate::leader::Lead;
pub(crate) use layout::Keys;
pub(crate) use link::{Link, PATIENCE, read, text};

/// Keys of one page, at most.
const PAGE: i64 = 512;

/// The keys of a pool, written by the scheduler that leads.
pub struct Etcd {
    link: Arc<Link>,
    keys: Keys,
    lead: Arc<Lead>,
    /// Of this scheduler; 0 before it has begun one.
    term: u64,
    /// What stands in `commit`; `None`: nothing yet.
    last: Option<Commit>,
}

/// A commit by its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Commit {
    term: u64,
    number: u64,
    /// Pieces that are yet to be put in their places.
    staged: usize,
}

impl Etcd {
    /// The store of whoever leads.
    pub(crate) fn new(link: Arc<Link>, keys: Keys, lead: Arc<Lead>) -> Etcd {
        Etcd { link, keys, lead, term: 0, last: None }
    }

    /// Reads everything at one moment, whoever leads.
    ///
    /// # Errors
    /// When it cannot be read as a whole.
    pub fn look(address: &EtcdAddress) -> Result<Contents, StoreError> {
        let (link, keys) = (Link::open(address)?, Keys::new(&address.prefix));
        Seen::new(link, keys, PATIENCE).read(&Kind::ALL)
    }

    fn seen(&self) -> Seen {
        Seen::new(self.link.clone(), self.keys.clone(), PATIENCE)
    }

    /// Carries out operations if this scheduler leads, and makes `next` the last commit. They must be harmless when
    /// repeated. Without `next` the commit stays what it is.
    fn write(&mut self, mut operations: Vec<TxnOp>, next: Option<Commit>) -> Result<(), StoreError> {
        let (leader, commit) = (self.keys.of("leader"), self.keys.of("commit"));
        let is_last = match &self.last {
            Some(last) => Compare::value(commit.clone(), CompareOp::Equal, last.text()),
            None => Compare::create_revision(commit.clone(), CompareOp::Equal, 0),
        };
        let leads = Compare::create_revision(leader.clone(), CompareOp::Equal, self.lead.revision);
        operations.extend(next.map(|next| TxnOp::put(commit.clone(), next.text(), None)));
        let otherwise = [read(&leader), read(&commit)];
        let transaction = Txn::new().when([leads, is_last]).and_then(operations).or_else(otherwise);
        let (link, patience) = (self.link.clone(), self.lead.patience());
        let answer = self.link.wait(async move { link.transact(transaction, patience).await })?;
        if !answer.succeeded() {
            let found: Vec<Option<KeyValue>> = answer.op_responses().into_iter().map(first).collect();
            let [leader, commit] = &found[..] else { return Err(self.failed("an answer without its parts")) };
            let still_leads = leader.as_ref().is_some_and(|it| it.create_revision() == self.lead.revision);
            if !still_leads {
                return Err(self.lead.fenced(leader.as_ref()));
            }
            // It was carried out before, and its answer was lost.
            let is_done =
                next.is_some_and(|next| commit.as_ref().is_some_and(|it| next.text() == it.value()));
            if !is_done {
                return Err(self.failed("somebody else has written to it"));
            }
        }
        self.last = next.or(self.last);
        Ok(())
    }

    fn next(&self, staged: usize) -> Option<Commit> {
        let number = self.last.map_or(0, |last| last.number) + 1;
        Some(Commit { term: self.term, number, staged })
    }

    /// Puts the rows of the last commit, which were staged, in their places.
    fn settle(&mut self, batches: Vec<Vec<TxnOp>>) -> Result<(), StoreError> {
        for batch in batches {
            self.write(batch, None)?;
        }
        let removal = self.keys.removal("staged/");
        self.write(vec![removal], self.next(0))
    }

    fn failed(&self, cause: &str) -> StoreError {
        StoreError::Failed { path: self.link.path().into(), cause: cause.into() }
    }
}

impl Store for Etcd {
    fn contents(&mut self) -> Result<Contents, StoreError> {
        self.seen().read(&Kind::ALL)
    }

    fn live(&mut self) -> Result<Contents, StoreError> {
        self.seen().live()
    }

    fn history(&self) -> Arc<dyn History> {
        Arc::new(self.seen())
    }

    fn begin_term(&mut self) -> Result<u64, StoreError> {
        let whole = self.seen().whole(&[])?;
        if whole.is_restoring {
            return Err(StoreError::HalfRestored { path: self.link.path().into() });
        }
        self.last = whole.last;
        self.term = whole.contents.term;
        if whole.last.is_some_and(|last| 0 < last.staged) {
            self.settle(self.keys.batches(&whole.staged))?;
        }
        self.term += 1;
        let operations = vec![
            TxnOp::put(self.keys.of("format"), FORMAT.to_string(), None),
            TxnOp::put(self.keys.of("term"), self.term.to_string(), None),
            self.keys.removal("staged/"),
        ];
        self.write(operations, Some(Commit { term: self.term, number: 0, staged: 0 }))?;
        self.lead.set_term(self.term);
        Ok(self.term)
    }

    fn commit(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        if rows.is_empty() {
            // What is answered and renewed now must be so only while nobody else can have begun.
            return if self.lead.is_sure() { Ok(()) } else { self.write(Vec::new(), None) };
        }
        let mut batches = self.keys.batches(rows);
        if batches.len() == 1 {
            return self.write(batches.remove(0), self.next(0));
        }
        let mut bytes = Vec::new();
        rows.iter().for_each(|row| frame::push(row, &mut bytes));
        let pieces: Vec<&[u8]> = bytes.chunks(layout::PIECE).collect();
        for (number, piece) in pieces.iter().enumerate() {
            let put = vec![TxnOp::put(self.keys.staged(number), *piece, None)];
            // With the last piece the commit is whole, and from then on it is done.
            let is_last = number + 1 == pieces.len();
            self.write(put, if is_last { self.next(pieces.len()) } else { None })?;
        }
        self.settle(batches)
    }

    fn replace(&mut self, contents: &Contents) -> Result<(), StoreError> {
        let before = self.seen().whole(&[])?;
        self.last = before.last;
        let mut operations = ["rows/", "more/", "staged/"].map(|it| self.keys.removal(it)).to_vec();
        operations.push(TxnOp::put(self.keys.of("restoring"), "1", None));
        self.write(operations, self.next(0))?;
        for batch in self.keys.batches(&contents.rows) {
            self.write(batch, None)?;
        }
        self.term = before.contents.term.max(contents.term);
        let operations = vec![
            TxnOp::put(self.keys.of("format"), FORMAT.to_string(), None),
            TxnOp::put(self.keys.of("term"), self.term.to_string(), None),
            TxnOp::delete(self.keys.of("restoring"), None),
        ];
        self.write(operations, self.next(0))
    }
}

impl Commit {
    fn text(&self) -> Vec<u8> {
        format!("{} {} {}", self.term, self.number, self.staged).into_bytes()
    }

    fn parse(text: &[u8]) -> Option<Commit> {
        let mut words = std::str::from_utf8(text).ok()?.split(' ');
        let (term, number) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Commit { term, number, staged: words.next()?.parse().ok()? })
    }
}

/// What etcd does by itself, to compare with: transactions a second of so many puts of 256 bytes, with so many clients
/// that each wait for theirs. The keys are removed in the end.
///
/// # Errors
/// When etcd does not answer.
pub async fn puts(
    address: &EtcdAddress,
    clients: usize,
    values: usize,
    span: Duration,
) -> Result<f64, StoreError> {
    let (link, keys) = (Link::open(address)?, Keys::new(&address.prefix));
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let (link, keys) = (link.clone(), keys.clone());
        tasks.spawn(async move {
            let mut count = 0;
            while begun.elapsed() < span {
                let key = |value: usize| keys.of(&format!("bench/{client}/{count}/{value}"));
                let puts: Vec<TxnOp> =
                    (0..values).map(|value| TxnOp::put(key(value), [7; 256], None)).collect();
                link.transact(Txn::new().and_then(puts), PATIENCE).await?;
                count += 1;
            }
            Ok::<usize, StoreError>(count)
        });
    }
    let mut count = 0;
    while let Some(task) = tasks.join_next().await {
        count += task.expect("it does not panic")?;
    }
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    link.transact(Txn::new().and_then([keys.removal("bench/")]), PATIENCE).await?;
    Ok(rate)
}

/// The keys of a pool, which its leader goes on writing.
pub(crate) struct Seen {
    link: Arc<Link>,
    keys: Keys,
    /// For so long each answer is waited for.
    patience: Duration,
}

impl Seen {
    pub(crate) fn new(link: Arc<Link>, keys: Keys, patience: Duration) -> Seen {
        Seen { link, keys, patience }
    }

    /// What a scheduler needs to go on, at one moment.
    ///
    /// # Errors
    /// When it cannot be read as a whole.
    pub(crate) fn live(&self) -> Result<Contents, StoreError> {
        self.read(&Kind::LIVE)
    }

    /// Rows of some kinds, and all else.
    fn whole(&self, kinds: &'static [Kind]) -> Result<Whole, StoreError> {
        let (link, keys, patience) = (self.link.clone(), self.keys.clone(), self.patience);
        self.link.wait(async move {
            let mut reader = Reader { link: &link, keys: &keys, patience, revision: 0 };
            reader.whole(kinds).await
        })
    }

    fn read(&self, kinds: &'static [Kind]) -> Result<Contents, StoreError> {
        let whole = self.whole(kinds)?;
        match whole.is_restoring {
            true => Err(StoreError::HalfRestored { path: self.link.path().into() }),
            false => Ok(whole.contents),
        }
    }
}

impl History for Seen {
    fn rows(&self, from: &[u8], most: usize) -> Result<Vec<Row>, StoreError> {
        let (link, keys, patience) = (self.link.clone(), self.keys.clone(), self.patience);
        let from = from.to_vec();
        self.link.wait(async move {
            // What a commit has staged is put in its place before it is confirmed.
            let failed = |cause| StoreError::Failed { path: link.path().into(), cause };
            let (from, end) = keys.rows_from(Kind::Ended, &from);
            let options = GetOptions::new().with_range(end).with_limit(most as i64);
            let mut page = link.get(from, options, patience).await?;
            let found: Vec<_> = page.take_kvs().into_iter().map(KeyValue::into_key_value).collect();
            let mut more = BTreeMap::new();
            for beginning in keys.further_pieces(&found).map_err(failed)? {
                let mut end = beginning.clone();
                *end.last_mut().expect("it ends with a slash") += 1;
                let mut pieces = link.get(beginning, GetOptions::new().with_range(end), patience).await?;
                more.extend(pieces.take_kvs().into_iter().map(KeyValue::into_key_value));
            }
            keys.rows(found, &more).map_err(failed)
        })
    }
}

/// All that there is at one moment.
struct Whole {
    /// With what is staged in its place.
    contents: Contents,
    last: Option<Commit>,
    staged: Vec<Row>,
    is_restoring: bool,
}

/// Reads at one revision, in pages.
struct Reader<'a> {
    link: &'a Link,
    keys: &'a Keys,
    patience: Duration,
    revision: i64,
}

impl Reader<'_> {
    async fn whole(&mut self, kinds: &[Kind]) -> Result<Whole, StoreError> {
        let names = ["format", "term", "commit", "restoring"];
        let reads: Vec<TxnOp> = names.iter().map(|name| read(&self.keys.of(name))).collect();
        let answer = self.link.transact(Txn::new().and_then(reads), self.patience).await?;
        self.revision = answer.header().map_or(0, |header| header.revision());
        let found: Vec<Option<KeyValue>> = answer.op_responses().into_iter().map(first).collect();
        let [format, term, commit, restoring] = &found[..] else {
            return Err(self.failed("an answer without its parts".into()));
        };
        let number = |name: &str, value: &Option<KeyValue>, default: u64| match value {
            None => Ok(default),
            Some(value) => {
                let text = String::from_utf8_lossy(value.value());
                text.parse().map_err(|_| self.failed(format!("{name} is {text:?}: expected a number")))
            }
        };
        let format = number("format", format, FORMAT)?;
        if FORMAT < format {
            return Err(StoreError::TooNew { found: format, known: FORMAT });
        }
        let term = number("term", term, 0)?;
        let last = match commit {
            None => None,
            Some(commit) => {
                let read = Commit::parse(commit.value());
                Some(read.ok_or_else(|| self.failed("the last commit cannot be read".into()))?)
            }
        };
        let mut rows = Vec::new();
        for kind in kinds {
            let more = self.pages(&format!("more/{}/", kind.table())).await?.into_iter().collect();
            let found = self.pages(&format!("rows/{}/", kind.table())).await?;
            rows.extend(self.keys.rows(found, &more).map_err(|why| self.failed(why))?);
        }
        let staged = match last.map_or(0, |last| last.staged) {
            0 => Vec::new(),
            pieces => self.staged(pieces).await?,
        };
        let mut rows = overlay(rows, &staged);
        rows.retain(|row| kinds.contains(&row.kind));
        let contents = Contents { term, rows };
        Ok(Whole { contents, last, staged, is_restoring: restoring.is_some() })
    }

    async fn staged(&self, pieces: usize) -> Result<Vec<Row>, StoreError> {
        let found = self.pages("staged/").await?;
        let expected = (0..pieces).map(|number| self.keys.staged(number));
        if !expected.eq(found.iter().map(|(key, _)| key.clone())) {
            return Err(
                self.failed(format!("{} of {pieces} pieces of the last commit are there", found.len()))
            );
        }
        let bytes: Vec<u8> = found.into_iter().flat_map(|(_, piece)| piece).collect();
        let mut rest = &bytes[..];
        let rows: Vec<Row> = std::iter::from_fn(|| frame::pop(&mut rest)).collect();
        match rest.len() {
            0 => Ok(rows),
            _ => Err(self.failed("the last commit cannot be read".into())),
        }
    }

    /// All keys that begin so, with their values, in order.
    async fn pages(&self, beginning: &str) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        let beginning = self.keys.of(beginning);
        let mut end = beginning.clone();
        *end.last_mut().expect("it ends with a slash") += 1;
        let (mut from, mut all) = (beginning, Vec::new());
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE);
            let mut page = self.link.get(from, options.with_revision(self.revision), self.patience).await?;
            let more = page.more();
            all.extend(page.take_kvs().into_iter().map(KeyValue::into_key_value));
            match all.last() {
                Some((last, _)) if more => from = [&last[..], &[0]].concat(),
                _ => return Ok(all),
            }
        }
    }

    fn failed(&self, cause: String) -> StoreError {
        StoreError::Failed { path: self.link.path().into(), cause }
    }
}

/// Rows with others over them, in order.
fn overlay(rows: Vec<Row>, over: &[Row]) -> Vec<Row> {
    let identity = |row: &Row| (row.kind, row.key.clone());
    let mut all: BTreeMap<_, Row> = rows.into_iter().map(|row| (identity(&row), row)).collect();
    for row in over {
        match row.value {
            Some(_) => _ = all.insert(identity(row), row.clone()),
            None => _ = all.remove(&identity(row)),
        }
    }
    all.into_values().collect()
}

fn first(answer: TxnOpResponse) -> Option<KeyValue> {
    match answer {
        TxnOpResponse::Get(mut answer) => answer.take_kvs().into_iter().next(),
        _ => None,
    }
}
