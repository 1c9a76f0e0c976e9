//! The figures, each with the document that it is from and where that was compared. `docs/datasheets.md` shows them to people.

use aquifer_core::Vendor;

/// Where a maker publishes its figures.
#[derive(Debug)]
pub struct Document {
    /// What people are told.
    pub name: &'static str,
    /// Its address; "": none was found.
    pub address: &'static str,
    /// Where the figures were compared with it: few of these documents can be read by a program.
    pub compared: &'static str,
}

/// What a maker says of a model.
#[derive(Debug)]
pub struct Row {
    /// The maker.
    pub vendor: Vendor,
    /// The first words of the model's name, in lower case, joined by hyphens.
    pub model: &'static str,
    /// Dense matrix products in bfloat16, or half precision where a device has no bfloat16, in TFLOP/s.
    pub tflops: f64,
    /// How fast it reads its memory, in GB/s; 0: not known here.
    pub memory_gbs: u32,
    /// Where that is published.
    pub document: &'static Document,
}

const fn row(
    vendor: Vendor,
    model: &'static str,
    tflops: f64,
    memory_gbs: u32,
    document: &'static Document,
) -> Row {
    Row { vendor, model, tflops, memory_gbs, document }
}

const fn document(name: &'static str, address: &'static str, compared: &'static str) -> Document {
    Document { name, address, compared }
}

/// Texts that name the maker's document beside its figures.
const ML_ENGINEERING: &str = "stas00/ml-engineering `compute/accelerator`, 2026-08";
const PYTORCH: &str = "pytorch/pytorch `torch/_inductor/analysis/device_info.py`";
const LIGHTNING: &str = "Lightning-AI/pytorch-lightning `fabric/utilities/throughput.py`";
const TABLES: &str = "published tables that name it";

const B200: &Document = &document(
    "NVIDIA DGX B200 datasheet, a card of eight, dense",
    "https://resources.nvidia.com/en-us-dgx-systems/dgx-b200-datasheet",
    ML_ENGINEERING,
);
const B300: &Document = &document(
    "NVIDIA DGX B300 datasheet, a card of eight, dense",
    "https://resources.nvidia.com/en-us-dgx-systems/dgx-b300-datasheet",
    ML_ENGINEERING,
);
const GB200: &Document = &document(
    "NVIDIA Blackwell datasheet 3384703, GB200, dense",
    "https://nvdam.widen.net/s/wwnsxrhm2w/blackwell-datasheet-3384703",
    ML_ENGINEERING,
);
const GB300: &Document = &document(
    "NVIDIA GB300 NVL72 product page, dense",
    "https://www.nvidia.com/en-us/data-center/gb300-nvl72/",
    ML_ENGINEERING,
);
const H200: &Document = &document(
    "NVIDIA H200 datasheet, dense",
    "https://www.nvidia.com/en-us/data-center/h200/",
    ML_ENGINEERING,
);
const H200_NVL: &Document = &document(
    "NVIDIA H200 product page, NVL, dense",
    "https://www.nvidia.com/en-us/data-center/h200/",
    TABLES,
);
const GH200: &Document = &document(
    "NVIDIA GH200 datasheet 2705455, dense",
    "https://nvdam.widen.net/content/tf2prbffgy/original/grace-hopper-superchip-datasheet-nvidia-2705455.pdf",
    ML_ENGINEERING,
);
const H100: &Document = &document(
    "NVIDIA H100 product page, SXM, dense",
    "https://www.nvidia.com/en-us/data-center/h100/",
    PYTORCH,
);
const H100_PCIE: &Document = &document(
    "NVIDIA H100 datasheet of 2022, PCIe, dense; memory: product brief PB-11133-001",
    "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet",
    LIGHTNING,
);
const H100_NVL: &Document = &document(
    "NVIDIA H100 product page, NVL, dense",
    "https://www.nvidia.com/en-us/data-center/h100/",
    "pytorch/torchtitan `tools/utils.py`; memory: stas00/ml-engineering",
);
const H800: &Document = &document(
    "as H100: the export model differs in links and double precision",
    "",
    "no document of its maker was found",
);
const H20: &Document =
    &document("as reported: no datasheet of NVIDIA H20 was found", "", "reports that agree with each other");
const A100: &Document = &document(
    "NVIDIA A100 datasheet 1758950-r4",
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
    "pytorch/pytorch; of 40 GB: FlagOpen/FlagPerf `base/benchmarks`",
);
const A100_PCIE: &Document = &document(
    "NVIDIA A100 datasheet 2188504, 80 GB PCIe",
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-nvidia-us-2188504-web.pdf",
    "a transcript of it",
);
const A800: &Document = &document(
    "as A100: the export model differs in links; 40 GB: datasheet 2819988",
    "https://www.nvidia.com/content/dam/en-zz/Solutions/design-visualization/a800/proviz-a800-40gb-datasheet-nvidia-2819988-r5-web.pdf",
    "a transcript of it, of 40 GB alone",
);
const A40: &Document =
    &document("NVIDIA A40 datasheet", "https://www.nvidia.com/en-us/data-center/a40/", TABLES);
const A30: &Document = &document(
    "NVIDIA A30 datasheet",
    "https://www.nvidia.com/content/dam/en-zz/Solutions/data-center/products/a30-gpu/pdf/a30-datasheet.pdf",
    TABLES,
);
const A10: &Document = &document(
    "NVIDIA A10 datasheet",
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/datasheet-new/nvidia-a10-datasheet.pdf",
    TABLES,
);
const L40S: &Document = &document(
    "NVIDIA L40S datasheet 2841316, dense",
    "https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413",
    ML_ENGINEERING,
);
const L40: &Document = &document(
    "NVIDIA L40 datasheet 2436245, dense",
    "https://www.nvidia.com/content/dam/en-zz/Solutions/design-visualization/support-guide/NVIDIA-L40-Datasheet-January-2023.pdf",
    "a transcript of it",
);
const L4: &Document = &document(
    "NVIDIA L4 datasheet, dense",
    "https://resources.nvidia.com/en-us-gpu-resources/l4-tensor-datasheet",
    "pytorch/pytorch; memory: published tables that name it",
);
const V100: &Document = &document(
    "NVIDIA V100 datasheet 1165301-r5, half precision",
    "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf",
    LIGHTNING,
);
const T4: &Document = &document(
    "NVIDIA T4 datasheet 951643, half precision",
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf",
    LIGHTNING,
);
const MI355X: &Document = &document(
    "AMD Instinct MI355X product page, dense",
    "https://www.amd.com/en/products/accelerators/instinct/mi350/mi355x.html",
    ML_ENGINEERING,
);
const MI350X: &Document = &document(
    "AMD Instinct MI350X brochure, dense, rounded",
    "https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs/product-briefs/amd-instinct-mi350x-gpu-brochure.pdf",
    ML_ENGINEERING,
);
const MI325X: &Document = &document(
    "AMD Instinct MI325X product page, dense",
    "https://www.amd.com/en/products/accelerators/instinct/mi300/mi325x.html",
    ML_ENGINEERING,
);
const MI300X: &Document = &document(
    "AMD ROCm documentation, MI300 series, dense",
    "https://rocm.docs.amd.com/en/latest/conceptual/gpu-arch/mi300.html",
    "itself",
);
const MI300A: &Document = &document(
    "AMD Instinct MI300A data sheet, dense",
    "https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs/data-sheets/amd-instinct-mi300a-data-sheet.pdf",
    PYTORCH,
);
const MI250X: &Document = &document(
    "AMD Instinct MI250X product page, one of its two dies, which are a device each",
    "https://www.amd.com/en/products/accelerators/instinct/mi200/mi250x.html",
    "pytorch/torchtitan `tools/utils.py`",
);
const MI250: &Document = &document(
    "AMD ROCm documentation, MI250, one of its two dies, which are a device each",
    "https://rocm.docs.amd.com/en/latest/conceptual/gpu-arch/mi250.html",
    "itself",
);
const MI210: &Document = &document(
    "AMD Instinct MI210 brochure",
    "https://www.amd.com/content/dam/amd/en/documents/instinct-business-docs/product-briefs/instinct-mi210-brochure.pdf",
    PYTORCH,
);
const GAUDI_2: &Document = &document(
    "Intel Gaudi 2 white paper",
    "https://www.intel.com/content/www/us/en/content-details/839363/intel-gaudi-2-ai-accelerators-white-paper.html",
    ML_ENGINEERING,
);
const GAUDI_3: &Document = &document(
    "Intel Gaudi 3 white paper of 2025: 1,835 at its presentation",
    "https://www.intel.com/content/www/us/en/content-details/817486/intel-gaudi-3-ai-accelerator-white-paper.html",
    ML_ENGINEERING,
);
const MLU370_X8: &Document = &document(
    "Cambricon MLU370-X8 presentation, one of its two chips, which are a device each, half precision",
    "",
    "press reports of 2022-03 that quote it",
);
const MLU370_X4: &Document =
    &document("Cambricon MLU370-X4 product page, half precision", "", "published tables");
const S4000: &Document = &document(
    "Moore Threads MTT S4000 product page, half precision",
    "https://www.mthreads.com/product/S4000",
    "published tables",
);
const BI_V100: &Document = &document(
    "Iluvatar's description of BI-V100",
    "https://github.com/FlagOpen/FlagPerf",
    "itself, in FlagOpen/FlagPerf",
);
const KUNLUN_2: &Document = &document(
    "Kunlunxin second generation product page, half precision",
    "https://www.kunlunxin.com/product/2873.html",
    "published tables that name it; it is closed to programs",
);
const BR104: &Document = &document("Biren BR104 presentation", "", "press reports of 2022-08 that quote it");

use Vendor::{Amd, Biren, Cambricon, Gaudi, Iluvatar, Kunlunxin, MooreThreads, Nvidia};

/// Of those that match, the longest counts.
pub const ROWS: &[Row] = &[
    row(Nvidia, "gb300", 2500.0, 8000, GB300),
    row(Nvidia, "b300", 2250.0, 8000, B300),
    row(Nvidia, "gb200", 2500.0, 8000, GB200),
    row(Nvidia, "b200", 2250.0, 8000, B200),
    row(Nvidia, "h200", 989.0, 4800, H200),
    row(Nvidia, "h200-nvl", 835.0, 4800, H200_NVL),
    row(Nvidia, "gh200", 989.0, 4000, GH200),
    row(Nvidia, "h100", 989.0, 3350, H100),
    row(Nvidia, "h100-pcie", 756.0, 2000, H100_PCIE),
    row(Nvidia, "h100-nvl", 835.0, 3900, H100_NVL),
    row(Nvidia, "h800", 989.0, 3350, H800),
    row(Nvidia, "h800-pcie", 756.0, 2000, H800),
    row(Nvidia, "h20", 148.0, 4000, H20),
    row(Nvidia, "a100", 312.0, 1555, A100),
    row(Nvidia, "a100-sxm4-80gb", 312.0, 2039, A100),
    row(Nvidia, "a100-80gb-pcie", 312.0, 1935, A100_PCIE),
    row(Nvidia, "a800", 312.0, 1555, A800),
    row(Nvidia, "a800-sxm4-80gb", 312.0, 2039, A800),
    row(Nvidia, "a800-80gb-pcie", 312.0, 1935, A800),
    row(Nvidia, "a40", 149.7, 696, A40),
    row(Nvidia, "a30", 165.0, 933, A30),
    row(Nvidia, "a10", 125.0, 600, A10),
    row(Nvidia, "l40s", 362.0, 864, L40S),
    row(Nvidia, "l40", 181.0, 864, L40),
    row(Nvidia, "l4", 121.0, 300, L4),
    row(Nvidia, "v100", 125.0, 900, V100),
    row(Nvidia, "v100-pcie", 112.0, 900, V100),
    row(Nvidia, "v100s-pcie", 130.0, 1134, V100),
    row(Nvidia, "t4", 65.0, 300, T4),
    row(Amd, "mi355x", 2516.6, 8000, MI355X),
    row(Amd, "mi350x", 2300.0, 8000, MI350X),
    row(Amd, "mi325x", 1307.4, 6000, MI325X),
    row(Amd, "mi300x", 1307.4, 5300, MI300X),
    row(Amd, "mi300a", 980.6, 5300, MI300A),
    row(Amd, "mi250x", 191.5, 1638, MI250X),
    row(Amd, "mi250", 181.0, 1638, MI250),
    row(Amd, "mi210", 181.0, 1638, MI210),
    row(Gaudi, "hl-225", 432.0, 2460, GAUDI_2),
    row(Gaudi, "hl-325", 1678.0, 3700, GAUDI_3),
    row(Gaudi, "hl-325l", 1678.0, 3700, GAUDI_3),
    row(Cambricon, "mlu370-x8", 48.0, 307, MLU370_X8),
    row(Cambricon, "mlu370-x4", 96.0, 307, MLU370_X4),
    row(MooreThreads, "mtt-s4000", 100.0, 768, S4000),
    row(Iluvatar, "bi-v100", 147.0, 0, BI_V100),
    row(Kunlunxin, "r200", 128.0, 512, KUNLUN_2),
    row(Kunlunxin, "r300", 128.0, 512, KUNLUN_2),
    row(Biren, "br104", 512.0, 0, BR104),
];
