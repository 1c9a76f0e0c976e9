//! Huawei Ascend, through DCMI. Source: Ascend/mind-cluster `devmanager/dcmi/dcmi_interface_api.h` and `…_v2.h`.
//!
//! The first generation addresses chips by card and chip within it; the second by logical number. In both the logical
//! number is the runtime's and the physical number that of `/dev/davinciN`.

use aquifer_core::{Isolation, Vendor};

use super::Maker;
use crate::device::api::Arg::*;
use crate::device::api::{
    Api, CallError, Check, Context, Level, Link, NOTHING, Opened, Probe, Rule, Slices, Take, U32, probe,
    take_list,
};
use crate::device::ascend_codes;
use crate::device::tool::report::{bytes, columns, place};
use crate::device::tool::{Asked, Told, Tool};

pub const ASCEND: Maker = Maker {
    vendor: Vendor::Ascend,
    name: "dcmi",
    libraries: &[
        "libdcmi.so",
        "/usr/local/Ascend/driver/lib64/driver/libdcmi.so",
        "/usr/local/dcmi/libdcmi.so",
    ],
    needs: &[],
    tool: Some(Tool {
        name: "npu-smi",
        places: &["/usr/local/bin/npu-smi", "/usr/local/sbin/npu-smi"],
        read: listed_by_smi,
    }),
    apis: &[V1, V2],
};

const V1: Api = Api {
    init: &[probe("dcmi_init", &[], 0, Take::Done)],
    list: Some(chips_of_cards),
    // dcmi_die_id, 20 bytes; VDIE = 1.
    uuid: &[
        probe("dcmi_get_device_die_v2", &[Card, Chip, Is(1), Out(0)], 20, Take::Hex { words: 5 }),
        probe("dcmi_get_device_die", &[Card, Chip, Out(0)], 20, Take::Hex { words: 5 }),
    ],
    model: &[
        probe("dcmi_get_device_chip_info_v2", &[Card, Chip, Out(0)], 132, NAME),
        probe("dcmi_get_device_chip_info", &[Card, Chip, Out(0)], 100, NAME),
    ],
    place: &[
        probe("dcmi_get_device_pcie_info_v2", &[Card, Chip, Out(0)], 64, PLACE),
        // dcmi_pcie_info, 28 bytes: four ids, then device, bus and function. There is no domain: what is read for it is
        // a zero behind the struct.
        probe(
            "dcmi_get_device_pcie_info",
            &[Card, Chip, Out(0)],
            64,
            Take::Place { domain: 60, bus: 20, device: 16, function: Some(24) },
        ),
    ],
    memory: &[
        probe("dcmi_get_device_hbm_info", &[Card, Chip, Out(0)], 32, MEMORY_MB),
        probe("dcmi_get_device_memory_info_v3", &[Card, Chip, Out(0)], 128, MEMORY_MB),
        probe("dcmi_get_device_memory_info_v2", &[Card, Chip, Out(0)], 128, MEMORY_MB),
    ],
    logical: &[probe("dcmi_get_device_logic_id", &[Out(0), Card, Chip], 4, U32)],
    // Of the logical number, which stands in `Index` when it is asked for.
    physical: &[probe("dcmi_get_device_phyid_from_logicid", &[Index, Out(0)], 4, U32)],
    needs_physical: true,
    checks: &[
        Check {
            probe: probe(
                "dcmi_get_device_errorcode_v2",
                &[Card, Chip, Out(0), Out(8), Is(128)],
                ALL_CODES,
                U32,
            ),
            rule: CODES,
        },
        Check {
            probe: probe("dcmi_get_device_health", &[Card, Chip, Out(0)], 4, U32),
            rule: Rule::Else(HEALTH),
        },
    ],
    link: Some(Link {
        probe: probe("dcmi_get_topo_info_by_device_id", &[Card, Chip, OtherCard, OtherChip, Out(0)], 4, U32),
        // HCCS, SIO (the two dies of a card) and HCCS through a switch.
        is_linked: |way| matches!(way, 3 | 6 | 7),
    }),
    slices: Some(Slices { is_divided: can_be_divided, level: Isolation::Limited, listed: None }),
    super_pod: Some(super_pod),
    // DCMI_ERR_CODE_DEVICE_NOT_EXIST.
    lost: &[-8008],
    ..NOTHING
};

const V2: Api = Api {
    init: &[probe("dcmiv2_init", &[], 0, Take::Done)],
    list: Some(chips_by_number),
    uuid: &[probe("dcmiv2_get_device_die", &[Card, Is(1), Out(0)], 20, Take::Hex { words: 5 })],
    model: &[probe("dcmiv2_get_device_chip_info", &[Card, Out(0)], 132, NAME)],
    place: &[probe("dcmiv2_get_device_pcie_info", &[Card, Out(0)], 64, PLACE)],
    memory: &[probe("dcmiv2_get_device_hbm_info", &[Card, Out(0)], 32, MEMORY_MB)],
    logical: &[],
    physical: &[
        probe("dcmiv2_get_chip_phyid_from_dev_id", &[Index, Out(0)], 4, U32),
        probe("dcmiv2_get_chip_phy_id_by_dev_id", &[Index, Out(0)], 4, U32),
    ],
    checks: &[
        Check {
            probe: probe(
                "dcmiv2_get_device_error_code_list",
                &[Card, Out(0), Out(8), Is(128)],
                ALL_CODES,
                U32,
            ),
            rule: CODES,
        },
        // The same under its earlier name.
        Check {
            probe: probe("dcmiv2_get_device_errorcode", &[Card, Out(0), Out(8), Is(128)], ALL_CODES, U32),
            rule: CODES,
        },
        Check { probe: probe("dcmiv2_get_device_health", &[Card, Out(0)], 4, U32), rule: Rule::Else(HEALTH) },
    ],
    link: None,
    slices: None,
    ..V1
};

/// dcmi_chip_info: type[32], name[32], version[32], then numbers.
const NAME: Take = Take::Text { at: 32 };
/// dcmi_pcie_info_all, 64 bytes: vendor, subvendor, device, subdevice, domain, bus, device, function, 32 spare.
const PLACE: Take = Take::Place { domain: 16, bus: 20, device: 24, function: Some(28) };
/// Of dcmi_hbm_info and dcmi_get_memory_info_stru: megabytes in the first eight bytes.
const MEMORY_MB: Take = Take::Number { at: 0, bytes: 8, unit: 1 << 20 };
/// Of the list of error codes: how many there are, then, eight bytes on, the codes.
const ALL_CODES: usize = 8 + 4 * 128;
const CODES: Rule = Rule::Each {
    at: 8,
    stride: 4,
    most: 128,
    means: ascend_codes::meaning,
    often: Some(ascend_codes::often),
};
/// What it comes to, for a card without a code that says what is to be done.
const HEALTH: &[(u64, Level, &str)] = &[
    (1, Level::Suspect, "dcmi reports a minor fault"),
    (2, Level::Lost, "dcmi reports a major fault"),
    (3, Level::Lost, "dcmi reports a critical fault"),
    (0xffff_ffff, Level::Lost, "dcmi says that it is not there or has not started"),
];

/// Of dcmi_chip_info and dcmi_chip_info_v2: how many AI cores a chip has.
pub(crate) const AI_CORES: [Probe; 2] = [
    probe("dcmi_get_device_chip_info_v2", &[Card, Chip, Out(0)], 132, CORES),
    probe("dcmi_get_device_chip_info", &[Card, Chip, Out(0)], 100, CORES),
];
const CORES: Take = Take::Number { at: 96, bytes: 4, unit: 1 };
/// DCMI_MAIN_CMD_VDEV_MNG, and what it is to say: all of a chip, and what is free of it.
const VDEV_MNG: i64 = 52;
const TOTAL: i64 = 1;
const FREE: i64 = 2;
/// How large the struct is stands in front of it: dcmi_soc_total_resource, 360 bytes: the number of virtual devices, then
/// theirs; dcmi_soc_free_resource, 224 bytes: two numbers, 64 bytes of dcmi_base_resource, AI cores as a float.
pub(crate) const VIRTUAL_DEVICES: Probe =
    probe("dcmi_get_device_info", &[Card, Chip, Is(VDEV_MNG), Is(TOTAL), Out(8), Out(0)], 368, AFTER_SIZE)
        .stamped(360);
pub(crate) const FREE_CORES: Probe = probe(
    "dcmi_get_device_info",
    &[Card, Chip, Is(VDEV_MNG), Is(FREE), Out(8), Out(0)],
    232,
    Take::Number { at: 8 + 72, bytes: 4, unit: 1 },
)
.stamped(224);
const AFTER_SIZE: Take = Take::Number { at: 8, bytes: 4, unit: 1 };

/// A kind of virtual chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    pub name: &'static str,
    /// Of how many AI cores.
    pub cores: u32,
    /// In GiB; 0: its part of the chip's memory.
    pub memory_gib: u64,
}

/// What a chip with so many AI cores can be divided into. Source: "Virtualization Templates" of Ascend/mind-cluster, without those
/// that differ in units for pictures.
pub(crate) fn templates(cores: u64) -> &'static [Template] {
    const fn of(name: &'static str, cores: u32, memory_gib: u64) -> Template {
        Template { name, cores, memory_gib }
    }
    const TRAINING: &[Template] =
        &[of("vir02", 2, 0), of("vir04", 4, 0), of("vir08", 8, 0), of("vir16", 16, 0)];
    const INFERENCE: &[Template] = &[of("vir01", 1, 0), of("vir02", 2, 0), of("vir04", 4, 0)];
    const A2_TRAINING: &[Template] = &[of("vir06_1c_16g", 6, 16), of("vir12_3c_32g", 12, 32)];
    const A2_INFERENCE: &[Template] = &[
        of("vir05_1c_8g", 5, 8),
        of("vir05_1c_16g", 5, 16),
        of("vir10_3c_16g", 10, 16),
        of("vir10_3c_32g", 10, 32),
    ];
    match cores {
        8 => INFERENCE,
        20 => A2_INFERENCE,
        24 => A2_TRAINING,
        30 | 32 => TRAINING,
        _ => &[],
    }
}

/// Whether there are templates for a chip, and its driver makes virtual ones.
fn can_be_divided(opened: &Opened, chip: &Context) -> bool {
    opened.first(&AI_CORES, chip).is_ok_and(|cores| !templates(cores.number()).is_empty())
        && opened.ask(&VIRTUAL_DEVICES, chip).is_ok()
}

/// Card and number within it of every chip that computes; a card has controllers and processors, too.
fn chips_of_cards(opened: &Opened) -> Result<Vec<[usize; 2]>, CallError> {
    let mut cards = Err(CallError::Missing("dcmi_get_card_list"));
    for symbol in ["dcmi_get_card_list", "dcmi_get_card_num_list"] {
        let list = probe(symbol, &[Out(0), Out(8), Is(64)], 8 + 4 * 64, U32);
        cards = take_list(opened, &list, 0, 8);
        if cards.is_ok() {
            break;
        }
    }
    let in_card = probe("dcmi_get_device_num_in_card", &[Card, Out(0)], 4, U32);
    let kind = probe("dcmi_get_device_type", &[Card, Chip, Out(0)], 4, U32);
    let mut chips = Vec::new();
    for card in cards? {
        let at = |chip: usize| Context { card: [card, chip], ..Context::default() };
        // A card that does not say how many it has is one, which will say why it cannot be read.
        let count = opened.ask(&in_card, &at(0)).map_or(1, |value| value.number().max(1) as usize);
        let computes = |chip: &usize| opened.ask(&kind, &at(*chip)).map_or(true, |value| value.number() == 0);
        chips.extend((0..count).filter(computes).map(|chip| [card, chip]));
    }
    Ok(chips)
}

fn chips_by_number(opened: &Opened) -> Result<Vec<[usize; 2]>, CallError> {
    // The list comes first, its length after it.
    let list = probe("dcmiv2_get_device_list", &[Out(8), Out(0), Is(64)], 8 + 4 * 64, U32);
    Ok(take_list(opened, &list, 0, 8)?.into_iter().map(|number| [number, 0]).collect())
}

/// DCMI_MAIN_CMD_CHIP_INF, DCMI_CHIP_INF_SUB_CMD_SPOD_INFO; the size of what is written, then dcmi_spod_info, 48 bytes: sdid, size,
/// super_pod_id, server, spare.
const SUPER_POD: Probe = probe(
    "dcmi_get_device_info",
    &[Card, Chip, Is(12), Is(1), Out(8), Out(0)],
    8 + 48,
    Take::Number { at: 8 + 8, bytes: 4, unit: 1 },
)
.stamped(48);

/// The super-pod of a chip, where chips of several machines are linked directly. Others say that they know no such thing, or have no
/// number.
fn super_pod(opened: &Opened, chip: &Context) -> Option<String> {
    let number = opened.ask(&SUPER_POD, chip).ok()?.number();
    (number < u64::from(u32::MAX)).then_some(format!("ascend-{number}"))
}

/// Chips as `npu-smi` tells of them: the map of their numbers, then the memory of each card's chips, then where each is.
///
/// Only newer ones tell the number of a chip's node, and that of a 950 not the logical number: without both a chip cannot be used.
fn listed_by_smi(tool: &Asked) -> Result<Vec<Told>, String> {
    let map = tool.say(&["info", "-m"])?;
    let mut lines = map.lines().skip_while(|line| !(line.contains("NPU ID") && line.contains("Chip Name")));
    let head = columns(lines.next().ok_or("its map of chips has no line with NPU ID and Chip Name")?);
    let mut cards: Vec<Told> = Vec::new();
    let (mut asked, mut sizes) = (String::new(), Vec::new());
    for row in lines.map(columns) {
        let field = |name: &str| row.get(head.iter().position(|column| *column == name)?).copied();
        let number = |name: &str| field(name).and_then(|number| number.parse::<u32>().ok());
        let (Some(card), Some(chip)) = (field("NPU ID"), field("Chip ID")) else { continue };
        let (logical, physical) = (number("Chip Logic ID"), number("Chip Phy-ID"));
        // The controllers of cards have neither.
        let Some(some) = logical.or(physical) else { continue };
        if asked != card {
            (asked, sizes) =
                (card.into(), memory_of_chips(&tool.say(&["info", "-t", "usages", "-i", card])?));
        }
        let board = board_of(tool, card, chip)?;
        let at = board.lines().find_map(|line| line.trim().strip_prefix("PCIe Bus Info")?.split_once(':'));
        let size = sizes.iter().find(|(of, _)| of == chip).or(sizes.first().filter(|_| sizes.len() == 1));
        cards.push(Told {
            logical: some,
            physical,
            model: field("Chip Name").unwrap_or("unknown").into(),
            memory_bytes: size.map_or(0, |(_, bytes)| *bytes),
            place: at.and_then(|(_, at)| place(at)),
            fault: logical.is_none().then(|| "npu-smi does not tell its logical number".into()),
            ..Told::default()
        });
    }
    Ok(cards)
}

/// What it says of a chip; where it knows no chips, of the card, if that is one.
fn board_of(tool: &Asked, card: &str, chip: &str) -> Result<String, String> {
    let ask = ["info", "-t", "board", "-i", card, "-c", chip];
    tool.say(&ask).or_else(|why| {
        let one =
            |text: &String| text.lines().any(|line| columns(&line.replace(':', "  ")) == ["Chip Count", "1"]);
        tool.say(&ask[..5]).ok().filter(one).ok_or(why)
    })
}

/// The memory of each chip of a card, which is told before the chip's number: of HBM, or else of DDR.
fn memory_of_chips(text: &str) -> Vec<(String, u64)> {
    let (mut chips, mut size) = (Vec::new(), 0);
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        match (key.trim(), value.trim()) {
            ("HBM Capacity(MB)" | "DDR Capacity(MB)", value) => {
                size = bytes(value, 20).unwrap_or(0).max(size)
            }
            ("Chip ID", chip) => chips.push((chip.to_string(), std::mem::take(&mut size))),
            _ => (),
        }
    }
    if chips.is_empty() && size != 0 {
        chips.push((String::new(), size));
    }
    chips
}
