//! What is summed up of a step, in whichever memory it lies.

use crate::kernels::DeviceError;
use crate::vector::Vector;
use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

/// Floats in the memory of a device. A process has one device.
pub trait OnDevice: Any + Send + Sync {
    /// How many they are.
    fn count(&self) -> usize;

    /// Copies them to the host, once all that was queued for them is done.
    ///
    /// # Errors
    /// The device has failed, now or before.
    fn read(&self, to: &mut [f32]) -> Result<(), DeviceError>;

    /// Whether all that was queued for them is done.
    ///
    /// # Errors
    /// The device has failed, now or before.
    fn is_written(&self) -> Result<bool, DeviceError>;

    /// Queues a copy in the same memory.
    fn duplicate(&self) -> Box<dyn OnDevice>;

    /// Queues the addition of others of the same memory.
    fn add(&mut self, other: &dyn OnDevice);
}

/// Floats in a row: a gradient and its loss, or what replicas give, of one shard or of several added up.
///
/// They lie where they were computed or received. What lies on a device comes to the host when somebody asks for it, and
/// once: whoever only passes it on, or adds to it what lies there as well, never waits for the device.
pub struct Values {
    place: Place,
    /// As they are on the host, if they are not there anyway and somebody has asked.
    read: OnceLock<Result<Vector, DeviceError>>,
}

enum Place {
    Host(Vector),
    Device(Box<dyn OnDevice>),
    /// The sum of what lies in different memories, computed when somebody asks: then nothing is left here.
    Sum(usize, Mutex<Option<[Arc<Values>; 2]>>),
}

impl Values {
    fn at(place: Place) -> Values {
        Values { place, read: OnceLock::new() }
    }

    /// Of a device.
    pub fn on_device(floats: impl OnDevice) -> Values {
        Values::at(Place::Device(Box::new(floats)))
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        match &self.place {
            Place::Host(floats) => floats.len(),
            Place::Device(floats) => floats.count(),
            Place::Sum(len, _) => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As a device has them, if one does.
    pub fn device(&self) -> Option<&dyn OnDevice> {
        match &self.place {
            Place::Device(floats) => Some(&**floats),
            _ => None,
        }
    }

    /// As the host has them. Waits until they are there.
    ///
    /// # Errors
    /// The device has failed, now or before.
    pub fn host(&self) -> Result<&[f32], DeviceError> {
        let read = match &self.place {
            Place::Host(floats) => return Ok(floats),
            Place::Device(floats) => self.read.get_or_init(|| {
                let mut read = Vector::any(floats.count());
                floats.read(&mut read).map(|()| read)
            }),
            Place::Sum(_, parts) => self.read.get_or_init(|| {
                let parts = parts.lock().expect("no holder panics").take();
                let [left, right] = parts.expect("it is computed once");
                let mut sum = match Arc::try_unwrap(left) {
                    Ok(left) => left.into_host()?,
                    Err(shared) => {
                        let mut copy = Vector::any(shared.len());
                        copy.copy_from_slice(shared.host()?);
                        copy
                    }
                };
                add(&mut sum, right.host()?);
                Ok(sum)
            }),
        };
        read.as_deref().map_err(Clone::clone)
    }

    /// As [`host`](Values::host), and nowhere else.
    ///
    /// # Errors
    /// As [`host`](Values::host).
    pub fn into_host(self) -> Result<Vector, DeviceError> {
        self.host()?;
        match self {
            Values { place: Place::Host(floats), .. } => Ok(floats),
            Values { read, .. } => read.into_inner().expect("just asked for"),
        }
    }

    /// Their sum. In one memory it takes the place of one of the two, if nobody else has that; of two memories it is computed when
    /// somebody asks.
    pub fn sum(mut left: Arc<Values>, mut right: Arc<Values>) -> Arc<Values> {
        // The sum of two floats has the same bits either way round.
        if Arc::get_mut(&mut left).is_none() && Arc::get_mut(&mut right).is_some() {
            (left, right) = (right, left);
        }
        if left.place.memory().is_some() && left.place.memory() == right.place.memory() {
            let mut sum = Arc::try_unwrap(left).map_or_else(|shared| shared.place.copy(), |own| own.place);
            sum.add(&right.place);
            return Arc::new(Values::at(sum));
        }
        let len = left.len();
        Arc::new(Values::at(Place::Sum(len, Mutex::new(Some([left, right])))))
    }
}

impl Place {
    /// Whether it is a device's memory; `None` where it is not of one memory.
    fn memory(&self) -> Option<bool> {
        match self {
            Place::Host(_) => Some(false),
            Place::Device(_) => Some(true),
            Place::Sum(..) => None,
        }
    }

    /// Of one memory.
    fn copy(&self) -> Place {
        match self {
            Place::Host(floats) => Place::Host(floats.clone()),
            Place::Device(floats) => Place::Device(floats.duplicate()),
            Place::Sum(..) => unreachable!("it is of two memories"),
        }
    }

    /// Of the same memory.
    fn add(&mut self, other: &Place) {
        match (self, other) {
            (Place::Host(sum), Place::Host(other)) => add(sum, other),
            (Place::Device(sum), Place::Device(other)) => sum.add(&**other),
            _ => unreachable!("they are of two memories"),
        }
    }
}

/// Whether all of them are finite numbers.
pub fn are_finite(values: &[f32]) -> bool {
    // Without a branch for each, many are looked at at a time.
    values.iter().fold(0, |most, value| value.abs().to_bits().max(most)) < f32::INFINITY.to_bits()
}

fn add(sum: &mut [f32], other: &[f32]) {
    sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
}

impl From<Vector> for Values {
    fn from(floats: Vector) -> Values {
        Values::at(Place::Host(floats))
    }
}

impl From<Vec<f32>> for Values {
    fn from(floats: Vec<f32>) -> Values {
        Vector::from(floats).into()
    }
}

impl Default for Values {
    fn default() -> Values {
        Vector::default().into()
    }
}

/// As the host has them.
impl PartialEq for Values {
    fn eq(&self, other: &Values) -> bool {
        self.host() == other.host()
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Host(floats) => floats.fmt(to),
            _ => write!(to, "[{} floats of a device]", self.len()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A device whose copies to the host are counted, and that may have failed.
    pub(crate) struct Fake(pub Vec<f32>, pub Arc<AtomicUsize>, pub bool);

    impl OnDevice for Fake {
        fn count(&self) -> usize {
            self.0.len()
        }

        fn read(&self, to: &mut [f32]) -> Result<(), DeviceError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            to.copy_from_slice(&self.0);
            if self.2 { Err(DeviceError("the card failed".into())) } else { Ok(()) }
        }

        fn is_written(&self) -> Result<bool, DeviceError> {
            Ok(true)
        }

        fn duplicate(&self) -> Box<dyn OnDevice> {
            Box::new(Fake(self.0.clone(), Arc::clone(&self.1), self.2))
        }

        fn add(&mut self, other: &dyn OnDevice) {
            let other: &dyn Any = other;
            let other: &Fake = other.downcast_ref().unwrap();
            add(&mut self.0, &other.0);
        }
    }

    #[test]
    fn what_lies_in_one_memory_is_added_there_and_comes_to_the_host_once() {
        let reads = Arc::new(AtomicUsize::new(0));
        let device =
            |value: f32| Arc::new(Values::on_device(Fake(vec![value; 2], Arc::clone(&reads), false)));
        let host = |value: f32| Arc::new(Values::from(vec![value; 2]));
        let both = Values::sum(device(1.0), device(2.0));
        assert!(both.device().is_some());
        let shared = Values::sum(Arc::clone(&both), device(4.0));
        let whole = Values::sum(Values::sum(host(16.0), host(8.0)), shared);
        assert_eq!((whole.len(), reads.load(Ordering::Relaxed)), (2, 0));
        assert!(whole.device().is_none());
        for _ in 0..2 {
            assert_eq!(whole.host(), Ok(&[31.0, 31.0][..]));
        }
        assert_eq!(reads.load(Ordering::Relaxed), 1);
        assert_eq!(both.host(), Ok(&[3.0, 3.0][..]), "others still have it as it was");
    }

    #[test]
    fn of_a_device_that_failed_nothing_comes_also_where_others_have_added_to_it() {
        let device = Values::on_device(Fake(vec![1.0], Arc::default(), true));
        let whole = Values::sum(Arc::new(device), Arc::new(vec![2.0].into()));
        let whole = Values::sum(whole, Arc::new(vec![4.0].into()));
        assert_eq!(whole.host(), Err(DeviceError("the card failed".into())));
    }
}
