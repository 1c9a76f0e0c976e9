//! What holds for every plan of a round.

use aquifer_core::rounds::fluid::fluid;
use aquifer_core::rounds::{Class, Goal, Job, Mode, plan};

/// SplitMix64, as small as it gets.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32) % bound
    }
}

fn some_pool(chance: &mut Chance) -> (Vec<Class>, Vec<Job>) {
    let classes: Vec<Class> =
        (0..1 + chance.below(4)).map(|_| Class { devices: chance.below(20) as u32 }).collect();
    let jobs = (0..chance.below(40)).map(|id| {
        let left = 1 << chance.below(30);
        let modes = (0..chance.below(6)).map(|_| Mode {
            class: chance.below(classes.len() as u64) as usize,
            devices: 1 << chance.below(5),
            left_ms: left + chance.below(left),
        });
        let modes: Vec<Mode> = modes.collect();
        Job {
            id,
            weight_permille: 1 + chance.below(2000),
            waited_ms: chance.below(1 << 30),
            due_in_ms: (chance.below(3) == 0).then(|| chance.below(1 << 24) as i64 - (1 << 22)),
            current: (!modes.is_empty() && chance.below(2) == 0)
                .then(|| chance.below(modes.len() as u64) as usize),
            restart_ms: chance.below(300_000),
            modes,
        }
    });
    let jobs = jobs.collect();
    (classes, jobs)
}

#[test]
fn gangs_are_whole_classes_are_not_overbooked_and_nothing_that_fits_is_left_out() {
    let mut seen = [0; 3];
    for seed in 0..2000 {
        let (classes, jobs) = some_pool(&mut Chance(seed));
        for goal in [Goal::Stream, Goal::Batch] {
            let chosen = plan(&classes, &jobs, goal);
            assert_eq!(chosen, plan(&classes, &jobs, goal), "seed {seed}: the same again");
            let mut free: Vec<i64> = classes.iter().map(|class| i64::from(class.devices)).collect();
            for (job, mode) in jobs.iter().zip(&chosen) {
                let Some(mode) = mode.map(|mode| &job.modes[mode]) else { continue };
                free[mode.class] -= i64::from(mode.devices);
                seen[0] += 1;
            }
            assert!(free.iter().all(|free| 0 <= *free), "seed {seed}: {free:?} devices are left");
            for job in jobs.iter().zip(&chosen).filter(|(_, mode)| mode.is_none()).map(|(job, _)| job) {
                let fits = |mode: &Mode| i64::from(mode.devices) <= free[mode.class];
                assert!(!job.modes.iter().any(fits), "seed {seed}: {job:?} fits into {free:?}");
                seen[1] += 1;
            }
            seen[2] += usize::from(goal == Goal::Batch);
        }
    }
    assert!(seen.iter().all(|seen| 1000 < *seen), "the property saw its cases: {seen:?}");
}

fn rigid(id: u64, devices: u32, left_ms: u64, waited_ms: u64) -> Job {
    let modes = vec![Mode { class: 0, devices, left_ms }];
    Job { id, modes, weight_permille: 1000, waited_ms, ..Job::default() }
}

#[test]
fn a_long_job_runs_in_the_end_however_many_short_ones_come() {
    let pool = [Class { devices: 8 }];
    let mut first = None;
    for round in 0..20_000u64 {
        // Every minute there are fresh short jobs for all devices.
        let mut jobs = vec![rigid(0, 8, 3_600_000, round * 60_000)];
        jobs.extend((1..=8).map(|id| rigid(id, 1, 60_000, 0)));
        let chosen = plan(&pool, &jobs, Goal::Stream);
        if chosen[0].is_some() {
            first = Some(round);
            break;
        }
    }
    // `(1 + waited / 1 h) / sqrt(60 * sqrt(8))` outweighs eight short ones only after about a hundred hours.
    assert!(first.is_some_and(|round| 60 < round), "it runs in round {first:?}");
}

#[test]
fn short_jobs_go_first_and_a_tight_one_before_them() {
    let pool = [Class { devices: 1 }];
    let mut jobs = vec![rigid(0, 1, 5_000_000, 0), rigid(1, 1, 100_000, 0)];
    assert_eq!(plan(&pool, &jobs, Goal::Stream), [None, Some(0)]);
    jobs[0].due_in_ms = Some(5_010_000);
    assert_eq!(plan(&pool, &jobs, Goal::Stream), [Some(0), None]);
    jobs[0].due_in_ms = Some(4_000_000);
    assert_eq!(plan(&pool, &jobs, Goal::Stream), [None, Some(0)], "it is too late for that");
}

#[test]
fn each_job_goes_where_it_is_fast_against_the_others() {
    let classes = [Class { devices: 1 }, Class { devices: 1 }];
    let job = |id, fast: u64, slow: u64| Job {
        modes: vec![
            Mode { class: 0, devices: 1, left_ms: fast },
            Mode { class: 1, devices: 1, left_ms: slow },
        ],
        ..rigid(id, 1, 1, 0)
    };
    // Both are fastest on the first class; the second job loses more elsewhere.
    let jobs = [job(0, 1_000_000, 1_200_000), job(1, 1_000_000, 6_000_000)];
    assert_eq!(plan(&classes, &jobs, Goal::Stream), [Some(1), Some(0)]);
    assert_eq!(plan(&classes, &jobs, Goal::Batch), [Some(1), Some(0)]);
}

#[test]
fn the_fluid_bound_is_that_of_the_linear_program() {
    let classes = [Class { devices: 2 }, Class { devices: 1 }];
    // Four equal jobs on two and a half devices' worth.
    let job = |id| Job {
        modes: vec![
            Mode { class: 0, devices: 1, left_ms: 1_000_000 },
            Mode { class: 1, devices: 1, left_ms: 2_000_000 },
        ],
        ..rigid(id, 1, 1, 0)
    };
    let bound = fluid(&classes, &[job(0), job(1), job(2), job(3)], 0).bound_ms;
    assert!((1_590_000..=1_600_000).contains(&bound), "4 / 2.5 = 1.6 million, not {bound}");
    // One long job bounds as well: half of the time each is what the prices would give without it.
    let bound = fluid(&classes, &[rigid(0, 1, 3_000_000, 0), job(1)], 0).bound_ms;
    assert_eq!(bound, 3_000_000);
}

#[test]
fn a_job_grows_where_it_is_for_less_than_it_moves_for() {
    let classes = [Class { devices: 2 }, Class { devices: 1 }];
    let job = |more: Mode| Job {
        modes: vec![Mode { class: 0, devices: 1, left_ms: 1_300_000 }, more],
        current: Some(0),
        restart_ms: 1000,
        ..rigid(0, 1, 1, 0)
    };
    let grown = job(Mode { class: 0, devices: 2, left_ms: 1_000_000 });
    assert_eq!(plan(&classes, &[grown], Goal::Stream), [Some(1)]);
    let moved = job(Mode { class: 1, devices: 1, left_ms: 1_000_000 });
    assert_eq!(plan(&classes, &[moved], Goal::Stream), [Some(0)], "a third is not enough for a new place");
    let little = job(Mode { class: 0, devices: 2, left_ms: 1_200_000 });
    assert_eq!(plan(&classes, &[little], Goal::Stream), [Some(0)], "nor is a twelfth for a second device");
}

/// A job of one class, on one device or on two.
fn widening(id: u64, one_ms: u64, two_ms: u64, waited_ms: u64) -> Job {
    let modes = [(1, one_ms), (2, two_ms)].map(|(devices, left_ms)| Mode { class: 0, devices, left_ms });
    Job { modes: modes.to_vec(), ..rigid(id, 1, 1, waited_ms) }
}

#[test]
fn short_jobs_go_first_but_more_devices_go_where_they_bring_more() {
    // A hundredth of the other's length, but a second device brings it 1.3 times the speed, not 2 times.
    let jobs = [widening(0, 100_000, 77_000, 0), widening(1, 10_000_000, 5_000_000, 0)];
    assert_eq!(plan(&[Class { devices: 1 }], &jobs, Goal::Stream), [Some(0), None]);
    assert_eq!(plan(&[Class { devices: 3 }], &jobs, Goal::Stream), [Some(0), Some(1)]);
}

#[test]
fn who_has_waited_gets_a_turn_not_more_devices() {
    let jobs = [widening(0, 1_000_000, 700_000, 0), widening(1, 1_000_000, 770_000, 10_000_000)];
    assert_eq!(plan(&[Class { devices: 1 }], &jobs, Goal::Stream), [None, Some(0)]);
    assert_eq!(plan(&[Class { devices: 3 }], &jobs, Goal::Stream), [Some(1), Some(0)]);
}

#[test]
fn long_jobs_change_places_in_a_calm_pool_but_not_amid_jobs_that_come_and_go() {
    let classes = [Class { devices: 1 }, Class { devices: 1 }, Class { devices: 8 }];
    // Each holds the class that serves the other better.
    let long = |id, current, slow_ms| Job {
        modes: vec![
            Mode { class: 0, devices: 1, left_ms: 100_000_000 },
            Mode { class: 1, devices: 1, left_ms: slow_ms },
        ],
        current: Some(current),
        restart_ms: 250_000,
        ..rigid(id, 1, 1, 0)
    };
    let mut jobs = vec![long(0, 0, 150_000_000), long(1, 1, 600_000_000)];
    assert_eq!(plan(&classes, &jobs, Goal::Stream), [Some(1), Some(0)], "calm");
    jobs.extend((2..10).map(|id| Job {
        modes: vec![Mode { class: 2, devices: 1, left_ms: 300_000 }],
        current: Some(0),
        ..rigid(id, 1, 1, 0)
    }));
    assert_eq!(plan(&classes, &jobs, Goal::Stream)[..2], [Some(0), Some(1)], "the restarts would not pay");
}
