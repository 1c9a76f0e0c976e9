//! The driver and the compiler of a card, as far as the tests need them: programs, memory, launches.

use crate::fake_cuda;
use aquifer_worker::kernels::Bf16;
use libloading::{Library, Symbol};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::{Mutex, OnceLock, PoisonError};

/// What elements are in a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Elem {
    Float,
    Bf16,
}

/// Both of them.
pub const ELEMS: [Elem; 2] = [Elem::Float, Elem::Bf16];

/// A card.
pub struct Card {
    driver: Library,
    compiler: Library,
    context: usize,
    /// As its compiler names it.
    architecture: String,
    /// Programs by file, elements and length of a head.
    modules: Mutex<BTreeMap<(String, Elem, usize), usize>>,
}

/// A compiled program.
pub struct Program {
    card: &'static Card,
    module: usize,
}

/// Memory of the card.
pub struct Memory {
    card: &'static Card,
    pub at: u64,
    bytes: usize,
}

/// One argument of a kernel.
#[allow(dead_code)] // The driver reads it.
#[derive(Clone, Copy)]
pub struct Arg(u64);

impl From<&Memory> for Arg {
    fn from(memory: &Memory) -> Arg {
        Arg(memory.at)
    }
}

/// Small arguments are followed by what a kernel must not read.
const JUNK: u64 = 0xdead_beef_0000_0000;

impl From<usize> for Arg {
    /// An `int`.
    fn from(value: usize) -> Arg {
        Arg(u64::from(u32::try_from(value).unwrap()) | JUNK)
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Arg {
        Arg(u64::from(value.to_bits()) | JUNK)
    }
}

/// A `long long`.
pub fn long(value: usize) -> Arg {
    Arg(value as u64)
}

/// A null pointer.
pub const NULL: Arg = Arg(0);

/// Makes `[Arg]` of anything that is one.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::card::Arg::from($arg)),*] };
}

/// Calls a function of the driver.
macro_rules! call {
    ($library:expr, $name:literal ( $($arg:expr => $type:ty),* )) => {{
        // SAFETY: the signature is that of the vendor's header.
        unsafe {
            let function: Symbol<'_, unsafe extern "C" fn($($type),*) -> c_int> =
                $library.get($name.as_bytes()).unwrap();
            function($($arg),*)
        }
    }};
}

impl Card {
    /// The fake card, with every kernel run in three orders of its threads, or with `AQUIFER_CARD` the machine's own. `None`,
    /// said aloud, if the fake one cannot be built.
    pub fn get() -> Option<&'static Card> {
        static CARD: OnceLock<Option<Card>> = OnceLock::new();
        let card = CARD.get_or_init(Card::open).as_ref()?;
        assert_eq!(call!(card.driver, "cuCtxSetCurrent"(card.context => usize)), 0);
        Some(card)
    }

    /// Whether it is one that NVIDIA made.
    pub fn is_real() -> bool {
        std::env::var_os("AQUIFER_CARD").is_some()
    }

    fn open() -> Option<Card> {
        let [driver, compiler] = if Card::is_real() {
            let compiler = std::env::var("AQUIFER_NVRTC").unwrap_or("libnvrtc.so.12".into());
            ["libcuda.so.1".into(), compiler.into()]
        } else {
            let folder = fake_cuda::libraries()?;
            // The least shared memory of all cards that are supported.
            for (name, value) in [("FAKE_CUDA_ORDERS", "3"), ("FAKE_CUDA_CAPABILITY", "89")] {
                // SAFETY: no other thread of this process reads the environment now: all come through here first.
                unsafe { std::env::set_var(name, value) };
            }
            ["libcuda.so", "libnvrtc.so"].map(|name| folder.join(name))
        };
        // SAFETY: nothing is run when these are loaded.
        let load = |path: PathBuf| {
            unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let (driver, compiler) = (load(driver), load(compiler));
        let (mut context, mut capability) = (0usize, [0, 0]);
        assert_eq!(call!(driver, "cuInit"(0 => c_uint)), 0);
        let retained = call!(driver, "cuDevicePrimaryCtxRetain"(&raw mut context => *mut usize, 0 => c_int));
        assert_eq!(retained, 0);
        for (value, attribute) in capability.iter_mut().zip([75, 76]) {
            let value = &raw mut *value;
            let got = call!(driver, "cuDeviceGetAttribute"(
                value => *mut c_int, attribute => c_int, 0 => c_int));
            assert_eq!(got, 0);
        }
        let architecture = match capability {
            [9, 0] => "sm_90a".into(),
            [major, minor] => format!("sm_{major}{minor}"),
        };
        Some(Card { driver, compiler, context, architecture, modules: Mutex::default() })
    }

    /// Program `file` of the worker, compiled once.
    pub fn program(&'static self, file: &str, elem: Elem, head_dim: usize) -> Program {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (file.to_owned(), elem, head_dim);
        if let Some(&module) = modules.get(&key) {
            return Program { card: self, module };
        }
        let text = |file: &str| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kernels/cuda");
            std::fs::read_to_string(folder.join(file)).unwrap()
        };
        let headers = ["common.cuh", "ptx.cuh", "tiles.cuh"].map(|name| (name, text(name)));
        let bf16 = u8::from(elem == Elem::Bf16);
        let fused = format!("--fmad={}", file != "update.cu");
        let options =
            [format!("-DBF16={bf16}"), format!("-DHEAD_DIM={head_dim}"), "--std=c++17".into(), fused];
        let program = self.compile(file, &text(file), &headers, &options);
        let program = program.unwrap_or_else(|log| panic!("{file}: {log}"));
        modules.insert(key, program.module);
        program
    }

    /// Compiles a program, or says what the compiler said.
    pub fn compile(
        &'static self,
        name: &str,
        source: &str,
        headers: &[(&str, String)],
        options: &[String],
    ) -> Result<Program, String> {
        let text = |text: &str| CString::new(text).unwrap();
        let pointers = |texts: &[CString]| texts.iter().map(|text| text.as_ptr()).collect::<Vec<_>>();
        let (source, name) = (text(source), text(name));
        let names: Vec<CString> = headers.iter().map(|(name, _)| text(name)).collect();
        let headers: Vec<CString> = headers.iter().map(|(_, header)| text(header)).collect();
        let mut options: Vec<CString> = options.iter().map(|option| text(option)).collect();
        options.push(text(&format!("--gpu-architecture={}", self.architecture)));
        let (mut program, mut size) = (null_mut::<c_void>(), 0usize);
        let result = call!(self.compiler, "nvrtcCreateProgram"(
            &raw mut program => *mut *mut c_void, source.as_ptr() => *const c_char, name.as_ptr() => *const c_char,
            headers.len() as c_int => c_int, pointers(&headers).as_ptr() => *const *const c_char,
            pointers(&names).as_ptr() => *const *const c_char));
        assert_eq!(result, 0);
        let compiled = call!(self.compiler, "nvrtcCompileProgram"(
            program => *mut c_void, options.len() as c_int => c_int,
            pointers(&options).as_ptr() => *const *const c_char));
        call!(self.compiler, "nvrtcGetProgramLogSize"(program => *mut c_void, &raw mut size => *mut usize));
        let mut log = vec![0u8; size];
        call!(self.compiler, "nvrtcGetProgramLog"(program => *mut c_void, log.as_mut_ptr() => *mut u8));
        if compiled != 0 {
            return Err(CStr::from_bytes_until_nul(&log).unwrap().to_string_lossy().into_owned());
        }
        call!(self.compiler, "nvrtcGetCUBINSize"(program => *mut c_void, &raw mut size => *mut usize));
        let mut image = vec![0u8; size];
        call!(self.compiler, "nvrtcGetCUBIN"(program => *mut c_void, image.as_mut_ptr() => *mut u8));
        call!(self.compiler, "nvrtcDestroyProgram"(&raw mut program => *mut *mut c_void));
        let mut module = 0;
        let loaded = call!(self.driver, "cuModuleLoadData"(
            &raw mut module => *mut usize, image.as_ptr() => *const u8));
        assert_eq!(loaded, 0);
        Ok(Program { card: self, module })
    }

    fn allocate(&'static self, bytes: usize) -> Memory {
        let mut at = 0;
        assert_eq!(call!(self.driver, "cuMemAlloc_v2"(&raw mut at => *mut u64, bytes => usize)), 0);
        let filled = call!(self.driver, "cuMemsetD8_v2"(at => u64, 0xff => u8, bytes => usize));
        assert_eq!(filled, 0);
        Memory { card: self, at, bytes }
    }

    fn put<T: Copy>(&'static self, values: &[T]) -> Memory {
        let memory = self.allocate(size_of_val(values).max(1));
        let put = call!(self.driver, "cuMemcpyHtoD_v2"(
            memory.at => u64, values.as_ptr() => *const T, size_of_val(values) => usize));
        assert_eq!(put, 0);
        memory
    }

    pub fn floats(&'static self, values: &[f32]) -> Memory {
        self.put(values)
    }

    pub fn bytes(&'static self, values: &[i8]) -> Memory {
        self.put(values)
    }

    pub fn ints(&'static self, values: &[i32]) -> Memory {
        self.put(values)
    }

    /// Values as elements, rounded.
    pub fn elements(&'static self, elem: Elem, values: &[f32]) -> Memory {
        match elem {
            Elem::Float => self.put(values),
            Elem::Bf16 => self.put(&values.iter().map(|x| Bf16::round(*x).0).collect::<Vec<u16>>()),
        }
    }

    /// Room for floats, which are NaN.
    pub fn no_floats(&'static self, count: usize) -> Memory {
        self.allocate(4 * count)
    }

    pub fn no_doubles(&'static self, count: usize) -> Memory {
        self.allocate(8 * count)
    }

    /// Room for elements, which are NaN.
    pub fn no_elements(&'static self, elem: Elem, count: usize) -> Memory {
        self.allocate(elem.bytes() * count)
    }
}

impl Elem {
    pub fn bytes(self) -> usize {
        match self {
            Elem::Float => 4,
            Elem::Bf16 => 2,
        }
    }

    /// The value that an element has after `x` was stored in it.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Elem::Float => x,
            Elem::Bf16 => Bf16::round(x).value(),
        }
    }

    /// Each of them, rounded.
    pub fn round_all(self, x: &[f32]) -> Vec<f32> {
        x.iter().map(|x| self.round(*x)).collect()
    }
}

impl Memory {
    fn get<T: Copy + Default>(&self, bytes: usize) -> Vec<T> {
        let mut values = vec![T::default(); bytes / size_of::<T>()];
        let got = call!(self.card.driver, "cuMemcpyDtoH_v2"(
            values.as_mut_ptr() => *mut T, self.at => u64, bytes => usize));
        assert_eq!(got, 0);
        values
    }

    pub fn as_floats(&self) -> Vec<f32> {
        self.get(self.bytes)
    }

    pub fn as_doubles(&self) -> Vec<f64> {
        self.get(self.bytes)
    }

    pub fn as_elements(&self, elem: Elem) -> Vec<f32> {
        match elem {
            Elem::Float => self.as_floats(),
            Elem::Bf16 => self.get::<u16>(self.bytes).iter().map(|x| Bf16(*x).value()).collect(),
        }
    }

    /// The memory from byte `offset` on.
    pub fn from(&self, offset: usize) -> Arg {
        Arg(self.at + offset as u64)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        call!(self.card.driver, "cuMemFree_v2"(self.at => u64));
    }
}

/// Blocks and threads of a launch, and its dynamic shared memory in bytes.
#[derive(Clone, Copy)]
pub struct Size {
    pub grid: [usize; 3],
    pub block: usize,
    pub shared: usize,
}

/// `grid` blocks in one dimension.
pub fn size(grid: usize, block: usize) -> Size {
    Size { grid: [grid, 1, 1], block, shared: 0 }
}

impl Program {
    /// Runs a kernel, which must succeed.
    pub fn launch(&self, kernel: &str, size: Size, args: &[Arg]) {
        assert_eq!(self.try_launch(kernel, size, args), 0, "{kernel}");
    }

    /// Runs a kernel; the driver's result.
    pub fn try_launch(&self, kernel: &str, size: Size, args: &[Arg]) -> c_int {
        let (name, mut function) = (CString::new(kernel).unwrap(), 0usize);
        let got = call!(self.card.driver, "cuModuleGetFunction"(
            &raw mut function => *mut usize, self.module => usize, name.as_ptr() => *const c_char));
        assert_eq!(got, 0, "{kernel}");
        // Above 48 KiB a kernel must be told: attribute 8 is the most dynamic shared memory.
        call!(self.card.driver, "cuFuncSetAttribute"(
            function => usize, 8 => c_int, size.shared as c_int => c_int));
        let mut pointers: Vec<*const Arg> = args.iter().map(|arg| arg as *const Arg).collect();
        let [x, y, z] = size.grid.map(|n| n as c_uint);
        let launched = call!(self.card.driver, "cuLaunchKernel"(
            function => usize, x => c_uint, y => c_uint, z => c_uint, size.block as c_uint => c_uint,
            1 => c_uint, 1 => c_uint, size.shared as c_uint => c_uint, 0 => usize,
            pointers.as_mut_ptr() => *mut *const Arg, 0 => usize));
        if launched == 0 { call!(self.card.driver, "cuCtxSynchronize"()) } else { launched }
    }
}
