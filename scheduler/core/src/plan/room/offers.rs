//! Which class the next replica of a service gets: what each would cost a request, from what nodes have.

use super::*;
use crate::cluster::Cluster;
use crate::jobs::Job;
use crate::serving::{Offer, Offered, offers};

/// That a replica is of a class that is no more than next to the best costs more than whatever else its place may cost.
const NEXT: i64 = 1 << 43;

impl Room {
    /// What each class offers a replica of a service that nodes have and it accepts, by their numbers; `None`: the job does
    /// not scale itself by a promise, or its other ranks are meant. `O(classes)`.
    pub(crate) fn offers(
        &self,
        cluster: &Cluster,
        job: &Job,
        role: &Role,
        want: &DeviceRequest,
    ) -> Option<Vec<(u16, Offer)>> {
        let (at, promise) = job.spec.promise().filter(|(at, _)| std::ptr::eq(&job.spec.roles[*at], role))?;
        let learned = cluster.learned(job.id);
        let known = (0u16..).zip(self.classes.iter().zip(&self.figures));
        let fits = known.filter_map(|(id, (class, figure))| {
            let take = Take::of(want, class).filter(|_| 0 < figure.devices)?;
            let hour = cluster.tariff().of(class).unwrap_or(figure.mean());
            let of_all = |mean: u64| mean.saturating_mul(take.devices_milli().into()).max(1);
            let offered = Offered {
                compute_micro: of_all(figure.mean()),
                memory_micro: of_all(figure.memory_mean()),
                price: hour.saturating_mul(take.charge_milli()).max(1),
                pace: learned.and_then(|learned| learned.pace(class)),
            };
            Some((id, offered))
        });
        let (ids, offered): (Vec<u16>, Vec<Offered>) = fits.unzip();
        let mix = learned.map(|learned| learned.mix()).unwrap_or_default();
        let bytes = job.spec.roles[at].program.value_bytes();
        Some(ids.into_iter().zip(offers(promise, mix, bytes, &offered)).collect())
    }

    /// What a thousandth of each class costs a rank beside its place. Of a replica the class counts first, the cheapest a
    /// request before the next; classes that are as cheap, and whatever else there is, by [`Room::class_costs`]. `None`: the
    /// scarcity alone.
    pub(in crate::plan) fn costs_for(
        &self,
        cluster: &Cluster,
        job: &Job,
        role: &Role,
        want: &DeviceRequest,
        scarcity: &[i64],
    ) -> Option<Vec<i64>> {
        let costs = self.class_costs(cluster.speeds(), || Kind::of(&job.spec, role), want, scarcity);
        let Some(mut offers) = self.offers(cluster, job, role, want) else { return costs };
        let mut costs = costs.unwrap_or_else(|| scarcity.to_vec());
        offers.sort_by_key(|(_, offer)| offer.rank());
        for (place, alike) in (0i64..).zip(offers.chunk_by(|one, next| one.1.rank() == next.1.rank())) {
            for (class, _) in alike {
                let class = usize::from(*class);
                let milli =
                    Take::of(want, &self.classes[class]).map_or(1, |take| take.devices_milli().max(1));
                costs[class] += place * (NEXT / i64::from(milli) + 1);
            }
        }
        Some(costs)
    }

    /// Number of a class.
    pub(crate) fn number_of(&self, class: &DeviceClass) -> Option<u16> {
        self.class_ids.get(class).copied()
    }

    /// A class by its number.
    pub(crate) fn class(&self, number: u16) -> &Arc<DeviceClass> {
        &self.classes[usize::from(number)]
    }

    /// Free devices of a class, in thousandths of one; of cores nothing.
    pub(crate) fn free_of(&self, number: u16) -> u64 {
        self.free_milli[usize::from(number)]
    }
}
