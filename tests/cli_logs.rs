//! How lines of several ranks are printed, from pieces as they come.

use std::collections::{BTreeMap, VecDeque};

use aquifer_cli::logs::{Printer, Reader, Tail};
use aquifer_cli::output::Output;
use aquifer_proto::v1;

fn chunk(rank: u32, offset: u64, data: &str) -> v1::LogChunk {
    v1::LogChunk { attempt: 1, rank, offset, data: data.into(), unavailable: String::new() }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn lines_of_ranks_never_mix() {
    let mut printer = Printer::of(12, Output::default());
    assert_eq!(text(printer.chunk(&chunk(0, 0, "one\ntw"))), "[ 0] one\n");
    assert_eq!(text(printer.chunk(&chunk(11, 0, "half"))), "");
    assert_eq!(text(printer.chunk(&chunk(0, 6, "o\n"))), "[ 0] two\n");
    assert_eq!(text(printer.chunk(&chunk(11, 4, " a line\r\n10%\r20%"))), "[11] half a line\n[11] 10%\n");
    assert_eq!(text(printer.rest()), "[11] 20%\n");
    assert_eq!(text(printer.rest()), "");
}

#[test]
fn a_line_feed_after_a_carriage_return_belongs_to_it_wherever_it_arrives() {
    let mut printer = Printer::of(2, Output::default());
    assert_eq!(text(printer.chunk(&chunk(0, 0, "one\r"))), "");
    assert_eq!(text(printer.chunk(&chunk(0, 4, "\ntwo\n"))), "[0] one\n[0] two\n");
}

#[test]
fn a_line_without_end_is_not_held_back_for_ever() {
    let mut printer = Printer::of(2, Output::default());
    let printed = printer.chunk(&chunk(1, 0, &"x".repeat(200_000)));
    assert_eq!(printed.len(), 3 * ((64 << 10) + "[1] \n".len()));
}

#[test]
fn the_bytes_of_a_single_rank_pass_as_they_come() {
    let mut printer = Printer::of(1, Output::default());
    assert_eq!(text(printer.chunk(&chunk(0, 0, "50%\r"))), "50%\r");
    assert_eq!(text(printer.rest()), "");
    let mut printer = Printer::of(1, Output { json: true, ..Output::default() });
    assert_eq!(
        text(printer.chunk(&chunk(0, 0, "a\"b\n"))),
        "{\"attempt\":1,\"rank\":0,\"text\":\"a\\\"b\"}\n"
    );
}

/// Whatever is sent again after a lost connection, every byte is printed once.
#[test]
fn nothing_is_printed_twice_after_a_lost_connection() {
    let log: String = (0..40).map(|line| format!("line {line}\n")).collect();
    for cut in 0..log.len() {
        for again in [0, cut / 2, cut] {
            let mut reader = Reader {
                job: "job-1".parse().unwrap(),
                rank: None,
                attempt: None,
                positions: BTreeMap::new(),
            };
            let mut printed = Vec::new();
            for mut chunk in [chunk(0, 0, &log[..cut]), chunk(0, again as u64, &log[again..])] {
                if reader.accept(&mut chunk) {
                    printed.extend(chunk.data);
                }
            }
            assert_eq!(String::from_utf8(printed).unwrap(), log, "cut {cut}, again from {again}");
            assert_eq!(reader.positions[&(1, 0)], log.len() as u64);
        }
    }
}

#[test]
fn the_tail_is_the_last_lines_of_each_rank_wherever_chunks_end() {
    let log = "1\n2\n3\n4";
    for (lines, expected) in [(0, ""), (1, "4"), (2, "3\n4"), (9, "1\n2\n3\n4")] {
        for cut in 0..log.len() {
            let mut tail = Tail { lines, ranks: BTreeMap::<(u32, u32), VecDeque<Vec<u8>>>::new() };
            tail.keep(&chunk(0, 0, &log[..cut]));
            tail.keep(&chunk(0, cut as u64, &log[cut..]));
            let kept: Vec<u8> = tail.rest().flat_map(|(_, bytes)| bytes).collect();
            assert_eq!(String::from_utf8(kept).unwrap(), expected, "{lines} lines, cut {cut}");
        }
    }
}
