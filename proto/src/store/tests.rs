use super::*;

/// Of a store that was written before queues had parents and jobs a worth.
#[test]
fn where_ranks_stand_is_stored_and_so_are_islands_and_mounts() {
    let level = |text: &str| Some(text.to_string());
    let device = v1::DeviceRequest { count: 4, one_island: true, ..v1::DeviceRequest::default() };
    let role = v1::Role {
        ranks: 3,
        request: Some(v1::Request {
            devices: vec![device],
            image: Some("app".into()),
            ..v1::Request::default()
        }),
        program: Some(v1::role::Program::Command(v1::Command { arguments: vec!["true".into()] })),
        mounts: vec![v1::Mount { source: "/srv".into(), target: "/data".into(), read_only: true }],
        apart: level("node"),
        spread: level("zone"),
        ..v1::Role::default()
    };
    let topology = v1::Topology { require: level("pod"), prefer: vec!["node".into(), "rack".into()] };
    let wire = v1::JobSpec { roles: vec![role], topology: Some(topology), ..v1::JobSpec::default() };
    let spec = crate::border::job_spec(&wire).expect("a job");
    let Topology { require, prefer } = &spec.topology;
    assert_eq!((require, prefer.len(), &prefer[0]), (&Some(Level::Label("pod".into())), 2, &Level::Node));
    let role = &spec.roles[0];
    assert_eq!(role.standing.apart, Some(Level::Node));
    assert_eq!(role.standing.spread, Some(Level::Label("zone".into())));
    assert!(role.request.devices[0].one_island);
    assert_eq!(role.mounts[0].to_string(), "/srv:/data:ro");
    assert_eq!(crate::border::job_spec(&crate::wire::job_spec(&spec)), Ok(spec));
    let devices = [Some(0), Some(65_535), None].map(|island| v1::Device {
        vendor: "nvidia".into(),
        island,
        ..v1::Device::default()
    });
    let mut offered = v1::Inventory { devices: devices.into(), ..v1::Inventory::default() };
    let inventory = crate::border::inventory(&offered).expect("an inventory");
    assert_eq!(crate::border::inventory(&crate::wire::inventory(&inventory)), Ok(inventory));
    offered.devices[0].island = Some(65_536);
    let refused = crate::border::inventory(&offered).expect_err("it is too large");
    assert_eq!(refused.to_string(), "inventory.devices[0].island is 65536: at most 65,535");
    (offered.devices[0].island, offered.devices[0].pcie_switch) = (None, Some(1 << 31));
    let refused = crate::border::inventory(&offered).expect_err("it is too large");
    assert_eq!(refused.to_string(), "inventory.devices[0].pcie_switch is 2147483648: at most 65,535");
}

#[test]
fn a_job_that_moves_is_stored_with_where_it_goes_on() {
    let role = v1::Role {
        ranks: 1,
        program: Some(v1::role::Program::Command(v1::Command { arguments: vec!["true".into()] })),
        ..v1::Role::default()
    };
    let wire = v1::JobSpec { roles: vec![role], ..v1::JobSpec::default() };
    let spec = Arc::new(crate::border::job_spec(&wire).expect("a job"));
    let rank = |worker| Allocation {
        node: NodeId(0),
        devices: vec![0],
        slice: None,
        charge_milli: 1000,
        cpus_milli: 0,
        memory_bytes: 0,
        port: 1,
        rank: 7,
        worker,
        since: Time(2),
        restart_at: Some(Time(3)),
        hasty: 2,
    };
    let mut job = Job::new(JobId(1), spec.clone(), None, Time(1));
    job.phase = Phase::Stopping(Then::Resize(vec![1]));
    job.ranks = vec![rank(RankState::Running), rank(RankState::Gone)];
    job.last_failure = Some(Why::Moved { from: "t4".into(), to: "h200".into() });
    let records = [Record::Spec(JobId(1), spec), Record::Job(Arc::new(job.clone()))];
    let again = decode_all(records.iter().map(encode)).expect("records");
    assert_eq!(again, [Record::Job(Arc::new(job.clone()))]);
    job.phase = Phase::Stopping(Then::Resize(vec![2]));
    let rows = [&records[0], &Record::Job(Arc::new(job))].map(encode);
    let refused = decode_all(rows).expect_err("it has no such rank").to_string();
    assert!(refused.contains("stays is 2: expected less than 2"), "{refused}");
}

#[test]
fn a_record_without_the_newer_fields_reads_as_it_was_meant() {
    let queue = v1::Queue { name: "red".into(), weight: 2, ..v1::Queue::default() };
    let rank = v1::Allocation { charge_milli: 1_500, port: 1, ..v1::Allocation::default() };
    let job = v1::StoredJob {
        spec: 1,
        phase: Some(v1::stored_job::Phase::Active(true)),
        attempt: 1,
        ranks: vec![v1::Allocation { state: v1::RankState::Running.into(), ..rank }; 2],
        ..v1::StoredJob::default()
    };
    let role = v1::Role {
        ranks: 1,
        program: Some(v1::role::Program::Command(v1::Command { arguments: vec!["true".into()] })),
        ..v1::Role::default()
    };
    let spec = v1::JobSpec { roles: vec![role], ..v1::JobSpec::default() };
    let row = |kind, key: &[u8], value| Row { kind, key: key.into(), value: Some(value) };
    let id = 1_u64.to_be_bytes();
    let rows = [
        row(Kind::Spec, &id, spec.encode_to_vec()),
        row(Kind::Job, &id, job.encode_to_vec()),
        row(Kind::Queue, b"red", queue.encode_to_vec()),
    ];
    let records = decode_all(rows).expect("records");
    let [Record::Job(job), Record::Queue(queue)] = &records[..] else { panic!("{records:?}") };
    assert_eq!((job.worth_milli, queue.parent.as_ref()), (3_000, None));
    assert_eq!(job.ranks.iter().map(|rank| rank.rank).collect::<Vec<_>>(), [0, 1]);
}

/// A job that stops for another number of ranks, and what a user wants of it.
#[test]
fn a_job_that_is_resized_reads_as_it_was_written() {
    let role = Role {
        name: "trainer".into(),
        ranks: 4,
        min_ranks: Some(2),
        request: Request { cpus_milli: 100, ..Request::default() },
        standing: Default::default(),
        program: Program::Command(vec!["true".into()]),
        mounts: Vec::new(),
    };
    let spec = JobSpec {
        name: "x".into(),
        queue: "red".into(),
        roles: vec![role],
        grace_ms: 1,
        ..JobSpec::default()
    };
    let rank = |port| Allocation {
        node: NodeId(0),
        devices: Vec::new(),
        slice: None,
        charge_milli: 100,
        cpus_milli: 100,
        memory_bytes: 0,
        port,
        rank: u32::from(port),
        worker: RankState::Running,
        since: Time(1),
        restart_at: None,
        hasty: 0,
    };
    let whys = [None, Some(JobId(7))].map(|by| Why::Resized { from: 3, to: 2, by, at: Time(5) });
    for (ranks, why) in [None, Some(3)].into_iter().zip(whys) {
        let mut job = Job::new(JobId(1), Arc::new(spec.clone()), None, Time(3));
        job.phase = Phase::Stopping(Then::Resize(vec![2, 0]));
        job.ranks = (1..4).map(rank).collect();
        job.last_failure = Some(why);
        job.scale = Some(Scale { ranks, at: Time(4) });
        let rows = [Record::Spec(job.id, job.spec.clone()), Record::Job(Arc::new(job.clone()))];
        let read = decode_all(rows.iter().map(encode)).expect("records");
        assert_eq!(read, [Record::Job(Arc::new(job.clone()))]);

        job.phase = Phase::Stopping(Then::Resize(vec![3]));
        let rows = [Record::Spec(job.id, job.spec.clone()), Record::Job(Arc::new(job))];
        let error = decode_all(rows.iter().map(encode)).expect_err("a rank that it does not have");
        assert!(error.to_string().ends_with("stays is 3: expected less than 3"), "{error}");
    }
}

#[test]
fn what_keeps_work_from_devices_is_stored_with_their_node() {
    let all = Health::ALL.map(|(health, _)| Some(Fault { health, why: "xid 79".into(), since_ms: 7 }));
    let device = |fault| Device {
        class: Arc::new(DeviceClass { vendor: Vendor::Cpu, model: "epyc".into(), memory_bytes: 1 }),
        uuid: "GPU-0".into(),
        fault,
        speed_milli: 3,
        speed_source: "measured: 1 TFLOP/s in bf16".into(),
        memory_gbs: 0,
        number: 0,
        isolation: Isolation::Advisory,
        island: None,
        locality: Locality { switch: Some(0), numa_node: Some(65_535) },
    };
    let mut node = Node::new(NodeId(0), "a".into());
    let devices: Vec<Device> = all.into_iter().chain([None]).map(device).collect();
    let figures = Measured {
        f32_mflops: 1,
        bf16_mflops: 2,
        int8_mflops: 3,
        attention_mflops: 4,
        memory_mbs: 5,
        host_link_mbs: 6,
        train_tokens_milli: 7,
        decode_tokens_milli: u64::MAX,
    };
    let measured = [(devices[0].class.clone(), figures)].into();
    node.inventory = Arc::new(Inventory { devices, measured, ..Inventory::default() });
    node.agent = "gpu-1-5f3a9c02".into();
    node.cordoned.insert("GPU-1".into());
    node.quarantined.insert("GPU-2".into(), Time(9));
    node.blame = Some(Blame { at: Time(8), why: "it fails probes".into() });
    let row = encode(&Record::Node(node.clone()));
    assert_eq!(decode_all([row]).expect("a node"), [Record::Node(node)]);
    let (node, fault) = (Name::from("a"), Name::from("to be reset: xid 95"));
    let why = Why::DeviceBad { rank: 3, node, device: 65_535, fault };
    assert_eq!(decode_why(&encode_why(&why)), Ok(why));

    // Of an agent that knows no states, a fault is one; of one that knows others, none is guessed.
    let mut wire = v1::Device { vendor: "cpu".into(), fault: Some("gone".into()), ..Default::default() };
    let read = |device: &v1::Device| {
        crate::border::inventory(&v1::Inventory { devices: vec![device.clone()], ..Default::default() })
    };
    let fault = read(&wire).expect("an inventory").devices[0].fault.clone();
    assert_eq!(fault, Some(Fault::faulty("gone")));
    // Of an agent that tells no figures, none is known; of a class that no device has, nothing is kept.
    let mut offered = v1::Inventory { devices: vec![wire.clone()], ..Default::default() };
    assert!(crate::border::inventory(&offered).expect("an inventory").measured.is_empty());
    offered.measured = vec![v1::Measured { vendor: "cpu".into(), model: "x".into(), ..Default::default() }];
    let error = crate::border::inventory(&offered).expect_err("no device is of that class").to_string();
    assert_eq!(error, "inventory.measured[0].model is x: expected that of a device");
    wire.health = "tired".into();
    let error = read(&wire).expect_err("no such state").to_string();
    assert!(error.starts_with("inventory.devices[0].health is tired: expected one of suspect,"), "{error}");
}
