//! Programs with the mistakes that the fake card is there to notice: what it lets pass, no test of a kernel can see.

use crate::card::{Arg, Card, Size, long, size};
use std::io::Write;
use std::process::Command;

/// Name, what is said, threads of a block, and the body of a kernel with `float* x` of 100 zeros.
const MISTAKES: [(&str, &str, usize, &str); 14] = [
    ("read_behind", "outside of the card's memory", 32, "x[0] = x[4096 + threadIdx.x];"),
    ("read_a_little_behind", "x[0] is not a number", 32, "if (threadIdx.x == 0) x[0] = x[100];"),
    ("write_a_little_behind", "wrote beyond an allocation", 32, "x[100] = 1;"),
    ("misaligned", "a misaligned vector", 32, "((float4*)(x + 1))[threadIdx.x] = float4{};"),
    (
        "outside_an_array",
        "an index outside of an array",
        32,
        "__shared__ float y[4]; y[threadIdx.x] = 1; x[0] = y[0];",
    ),
    (
        "without_a_barrier",
        "depends on the order of the threads",
        64,
        "__shared__ float y[64]; y[threadIdx.x] = 1; x[threadIdx.x] = y[63 - threadIdx.x];",
    ),
    ("two_writers", "depends on the order of the threads", 64, "x[0] = threadIdx.x;"),
    (
        "uninitialised",
        "x[0] is not a number",
        32,
        "__shared__ float y[2]; if (threadIdx.x == 0) x[0] = y[1];",
    ),
    (
        "half_a_barrier",
        "threads wait for others that never come",
        64,
        "if (threadIdx.x < 32) __syncthreads();",
    ),
    (
        "half_a_warp",
        "threads wait for others that never come",
        32,
        "if (threadIdx.x < 16) x[0] = __shfl_xor_sync(~0u, x[0], 1);",
    ),
    (
        "not_waited_for",
        "copies to shared memory were not waited for",
        32,
        "__shared__ __align__(16) float y[4]; copy_async(y, x, true); commit_copies();",
    ),
    (
        "read_too_early",
        "depends on the order of the threads",
        32,
        "__shared__ __align__(16) float y[4]; if (threadIdx.x == 0) { copy_async(y, x, true); commit_copies(); \
         x[0] = y[0]; wait_for_copies<0>(); }",
    ),
    (
        "copied_over",
        "depends on the order of the threads",
        32,
        "__shared__ __align__(16) float y[4]; y[0] = 1; copy_async(y, x + 4, true); x[0] = y[0]; commit_copies(); \
         wait_for_copies<0>();",
    ),
    (
        "no_group",
        "depends on the order of the threads",
        32,
        "__shared__ __align__(16) float y[4]; if (threadIdx.x == 0) { copy_async(y, x, true); commit_copies(); \
         wait_for_copies<1>(); x[0] = y[0]; wait_for_copies<0>(); }",
    ),
];

fn source() -> String {
    let kernel = |(name, _, _, body): &(&str, &str, usize, &str)| {
        format!("extern \"C\" __global__ void {name}(float* x, long long) {{ {body} }}\n")
    };
    let all: String = MISTAKES.iter().map(kernel).collect();
    let right = ("right", "x[0] = n;");
    let shared = ("shared", "DYNAMIC_SHARED(float, y); y[n] = 0; x[0] = y[n];");
    let more = [right, shared].map(|(name, body)| {
        format!("extern \"C\" __global__ void {name}(float* x, long long n) {{ {body} }}\n")
    });
    format!("#include \"ptx.cuh\"\n{all}{}", more.concat())
}

/// Runs one mistake: a card that failed stays so, and so does its process.
#[test]
fn make_a_mistake_if_asked() {
    let Ok(name) = std::env::var("FAKE_CUDA_MISTAKE") else { return };
    let card = Card::get().unwrap();
    let program = card.compile("wrong.cu", &source(), &[], &[]).unwrap_or_else(|log| panic!("{log}"));
    let memory = card.floats(&[0.0; 100]);
    let small: Arg = 7.into();
    match name.as_str() {
        // An `int` for a `long long`: what is behind it is read as well.
        "narrow_argument" => {
            program.launch("right", size(1, 32), &[(&memory).into(), small]);
            assert_eq!(memory.as_floats()[0], 7.0);
        }
        "argument_of_the_host" => {
            let host = Arg::from(7.0f32);
            assert_eq!(program.try_launch("right", size(1, 32), &[host, long(7)]), 0);
        }
        "too_little_shared" => {
            let shape = Size { shared: 16, ..size(1, 32) };
            assert_eq!(program.try_launch("shared", shape, &[(&memory).into(), long(3)]), 0);
            assert_eq!(program.try_launch("shared", shape, &[(&memory).into(), long(4)]), 0);
        }
        "too_much_shared" => {
            let shape = Size { shared: 300 << 10, ..size(1, 32) };
            assert_eq!(program.try_launch("right", shape, &[(&memory).into(), long(7)]), 0);
        }
        "freed" => {
            let freed = Arg::from(&memory);
            drop(memory);
            assert_eq!(program.try_launch("right", size(1, 32), &[freed, long(7)]), 0);
        }
        "right" => program.launch("right", size(1, 32), &[(&memory).into(), long(7)]),
        name => {
            let (_, _, threads, _) = MISTAKES.iter().find(|mistake| mistake.0 == name).unwrap();
            program.launch(name, size(1, *threads), &[(&memory).into(), long(0)]);
            assert!(!memory.as_floats()[0].is_nan(), "x[0] is not a number");
        }
    }
}

#[test]
fn the_fake_card_notices_mistakes() {
    if Card::get().is_none() {
        return;
    }
    if Card::is_real() {
        _ = writeln!(std::io::stderr(), "skipped: mistakes that only the fake card notices");
        return;
    }
    let run = |name: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "wrong::make_a_mistake_if_asked", "--nocapture"])
            .env("FAKE_CUDA_MISTAKE", name)
            .output()
            .unwrap();
        let text =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.success(), text)
    };
    let (success, text) = run("right");
    assert!(success && text.contains("1 passed"), "{text}");
    let more = [
        ("narrow_argument", "left == right"),
        ("argument_of_the_host", "argument 0 is not memory of the card"),
        ("freed", "argument 0 is not memory of the card"),
        ("too_much_shared", "too much shared memory"),
        ("too_little_shared", "behind the dynamic shared memory of the launch"),
    ];
    for (name, said) in MISTAKES.map(|(name, said, ..)| (name, said)).into_iter().chain(more) {
        let (success, text) = run(name);
        assert!(!success && text.contains(said), "{name}: not {said:?} but {text}");
    }
}
