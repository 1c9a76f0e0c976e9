//! The end of a step: what it has changed, each once.

use super::*;

/// What the steps since the last flush have changed, and what people are told of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    pub jobs: Touched<JobId>,
    pub nodes: Touched<NodeId>,
    pub queues: Touched<Name>,
    pub usages: Touched<Name>,
    pub reservations: Touched<Name>,
    pub tariff: bool,
    /// Nodes that have something new to do.
    pub reassigned: Touched<NodeId>,
    pub new_specs: Vec<JobId>,
    pub notes: Vec<Note>,
}

/// Identities of what was changed. A step changes little, and the same thing several times.
#[derive(Clone, Debug)]
pub(super) struct Touched<T>(Vec<T>);

impl<T> Default for Touched<T> {
    fn default() -> Touched<T> {
        Touched(Vec::new())
    }
}

impl<T: Ord> Touched<T> {
    pub fn insert(&mut self, it: T) {
        if self.0.last() != Some(&it) {
            self.0.push(it);
        }
    }

    /// All of them, each once, ascending.
    fn drain(&mut self) -> std::vec::Drain<'_, T> {
        if 1 < self.0.len() {
            self.0.sort_unstable();
            self.0.dedup();
        }
        self.0.drain(..)
    }
}

impl Cluster {
    /// Ends the step: emits every change once, then the answers, then the notes.
    pub(super) fn flush(
        &mut self,
        mut reporter: Option<NodeId>,
        mut unknown: Option<NodeId>,
        effects: &mut Vec<Effect>,
    ) {
        self.flush_retired(effects);
        let changes = &mut self.changes;
        let mut save = |record| effects.push(Effect::Save(record));
        for id in changes.new_specs.drain(..) {
            save(Record::Spec(id, self.jobs.get(id).expect("a new job").spec.clone()));
        }
        for id in changes.jobs.drain() {
            save(Record::Job(self.jobs.shared(id).expect("a touched job")));
        }
        for id in changes.nodes.drain() {
            save(Record::Node(self.nodes.get(id).clone()));
        }
        for name in changes.queues.drain() {
            save(Record::Queue(self.queues.get(&name).expect("a touched queue").clone()));
        }
        for name in changes.usages.drain() {
            let usage = self.queues.usage(&name);
            save(Record::Usage(name, usage));
        }
        for name in changes.reservations.drain() {
            save(match self.reservations.get(&name) {
                Some(reservation) => Record::Reservation(reservation.clone()),
                None => Record::NoReservation(name),
            });
        }
        if std::mem::take(&mut changes.tariff) {
            save(Record::Tariff(self.tariff.clone()));
        }
        let mut reassigned = std::mem::take(&mut changes.reassigned);
        for id in reassigned.drain() {
            reporter = reporter.filter(|node| *node != id);
            self.revision.count += 1;
            self.nodes.set_revision(id, self.revision);
            if self.nodes.get(id).up {
                // Its next heartbeat is not known either, and asks again.
                unknown = unknown.filter(|node| *node != id);
                effects.push(self.assign(id));
            }
        }
        // The empty lists keep their memory.
        self.changes.reassigned = reassigned;
        if let Some(id) = reporter {
            let lease = self.nodes.lease(id).expect("a node that just reported is up");
            if lease.reported == self.nodes.revision(id) {
                effects.push(Effect::Renew { node: id, acked: lease.seq });
            } else {
                effects.push(self.assign(id));
            }
        }
        effects.extend(unknown.map(Effect::AskReport));
        effects.extend(self.changes.notes.drain(..).map(Effect::Note));
    }

    fn assign(&self, id: NodeId) -> Effect {
        let acked = self.nodes.lease(id).map_or(0, |lease| lease.seq);
        Effect::Assign { node: id, acked, assignment: self.assignment(id) }
    }
}
