//! Matrix products by cuBLASLt.
//!
//! Its matrices are column-major: a row-major matrix is its transpose there, so `d[m, n] = a[m, k] * b[k, n]` is asked for as
//! `d^T = b^T * a^T`, with the factors exchanged. Which algorithm computes a shape is asked once.

use super::DeviceError;
use super::card::Card;
use cudarc::cublaslt::sys as lt;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;

/// Bytes that an algorithm may use for itself: what the library's manual recommends for these cards.
const WORKSPACE: usize = 32 << 20;

/// A matrix in memory, row-major; a factor may be read as its transpose.
#[derive(Clone, Copy, Debug)]
pub struct Factor {
    pub address: u64,
    /// Length of a row in memory.
    pub stride: usize,
    pub is_transposed: bool,
}

/// `d[m, n] = a[m, k] * b[k, n]`, plus `c` of the shape of `d` where there is one.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Factor,
    pub b: Factor,
    /// The factors are bf16, else floats.
    pub is_bf16: bool,
    pub c: Option<u64>,
    pub d: u64,
    /// The result is in floats, whatever the factors are.
    pub is_float: bool,
    /// Length of a row of `c` and `d` in memory.
    pub stride: usize,
}

/// What decides on an algorithm.
type Shape = ([usize; 3], [usize; 3], [bool; 4], u32);

/// How a shape is computed.
struct Plan {
    product: lt::cublasLtMatmulDesc_t,
    /// Of `b`, `a` and `d`.
    layouts: [lt::cublasLtMatrixLayout_t; 3],
    algorithm: lt::cublasLtMatmulAlgo_t,
}

/// The library, and what it was asked.
pub struct Products {
    handle: lt::cublasLtHandle_t,
    workspace: (u64, usize),
    plans: BTreeMap<Shape, Plan>,
}

impl Products {
    /// Starts the library on the card of this thread.
    ///
    /// # Errors
    /// It does not start, or the card has no room for what it needs.
    pub fn new(card: &Card) -> Result<Products, DeviceError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the library was found, and the place lives through the call.
        #[allow(unsafe_code)]
        done("cublasLtCreate", unsafe { lt::cublasLtCreate(&mut handle) })?;
        Ok(Products { handle, workspace: card.allocate(WORKSPACE)?, plans: BTreeMap::new() })
    }

    /// Queues a product.
    ///
    /// # Errors
    /// The library has no algorithm for it, or fails.
    pub fn multiply(&mut self, card: &Card, product: Product) -> Result<(), DeviceError> {
        let Product { m, n, k, a, b, is_bf16, c, d, is_float, stride } = product;
        let addresses = [a.address, b.address, c.unwrap_or(d), d];
        let alignment =
            addresses.iter().fold(256, |most, address| most.min(1 << address.trailing_zeros().min(8)));
        let kinds = [is_bf16, is_float, a.is_transposed, b.is_transposed];
        let shape = ([m, n, k], [a.stride, b.stride, stride], kinds, alignment);
        if !self.plans.contains_key(&shape) {
            let plan = self.plan(shape)?;
            self.plans.insert(shape, plan);
        }
        let plan = &self.plans[&shape];
        let (alpha, beta) = (1.0f32, if c.is_some() { 1.0f32 } else { 0.0 });
        let pointer = |address: u64| ptr::without_provenance_mut::<c_void>(address as usize);
        let [of_b, of_a, of_d] = plan.layouts;
        // SAFETY: the matrices are in the card's memory and as large as their layouts say, the plan lives, and both factors
        // are floats of the host.
        #[allow(unsafe_code)]
        let result = unsafe {
            lt::cublasLtMatmul(
                self.handle,
                plan.product,
                ptr::from_ref(&alpha).cast(),
                pointer(b.address),
                of_b,
                pointer(a.address),
                of_a,
                ptr::from_ref(&beta).cast(),
                pointer(c.unwrap_or(d)),
                of_d,
                pointer(d),
                of_d,
                &plan.algorithm,
                pointer(self.workspace.0),
                self.workspace.1,
                card.stream().cast(),
            )
        };
        done("cublasLtMatmul", result)
    }

    fn plan(&self, shape: Shape) -> Result<Plan, DeviceError> {
        let ([m, n, k], [a_stride, b_stride, d_stride], kinds, alignment) = shape;
        let [is_bf16, is_float, a_transposed, b_transposed] = kinds;
        let bf16 = lt::cudaDataType_t::CUDA_R_16BF;
        let float = lt::cudaDataType_t::CUDA_R_32F;
        let factor = if is_bf16 { bf16 } else { float };
        let sum = if is_float { float } else { factor };
        // As they lie in memory: rows of a column-major matrix are what stands together.
        let a = if a_transposed { [m, k] } else { [k, m] };
        let b = if b_transposed { [k, n] } else { [n, k] };
        // Floats are multiplied as floats: TF32 has 10 bits.
        let compute = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let (mut product, mut preference) = (ptr::null_mut(), ptr::null_mut());
        let mut found = 0;
        // SAFETY: every object is made before it is used, attributes are of the types that the manual gives them, and all
        // places live through the calls. A heuristic's result is plain numbers, for which zeros are values.
        #[allow(unsafe_code)]
        unsafe {
            done("cublasLtMatmulDescCreate", lt::cublasLtMatmulDescCreate(&mut product, compute, float))?;
            use lt::cublasLtMatmulDescAttributes_t as Attribute;
            for (attribute, is_transposed) in [
                (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, b_transposed),
                (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, a_transposed),
            ] {
                let value = i32::from(is_transposed);
                let set =
                    lt::cublasLtMatmulDescSetAttribute(product, attribute, ptr::from_ref(&value).cast(), 4);
                done("cublasLtMatmulDescSetAttribute", set)?;
            }
            let mut layouts = [ptr::null_mut(); 3];
            for (layout, (kind, [rows, columns], stride)) in layouts.iter_mut().zip([
                (factor, b, b_stride),
                (factor, a, a_stride),
                (sum, [n, m], d_stride),
            ]) {
                let (rows, columns, stride) = (rows as u64, columns as u64, stride as i64);
                let made = lt::cublasLtMatrixLayoutCreate(layout, kind, rows, columns, stride);
                done("cublasLtMatrixLayoutCreate", made)?;
            }
            done("cublasLtMatmulPreferenceCreate", lt::cublasLtMatmulPreferenceCreate(&mut preference))?;
            use lt::cublasLtMatmulPreferenceAttributes_t as Preference;
            let workspace = WORKSPACE;
            let set = |which, value: *const c_void, bytes| {
                let set = lt::cublasLtMatmulPreferenceSetAttribute(preference, which, value, bytes);
                done("cublasLtMatmulPreferenceSetAttribute", set)
            };
            let most = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            set(most, ptr::from_ref(&workspace).cast(), size_of::<usize>())?;
            for which in [
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ] {
                set(which, ptr::from_ref(&alignment).cast(), 4)?;
            }
            let mut best: lt::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
            let [of_b, of_a, of_d] = layouts;
            let asked = lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                product,
                of_b,
                of_a,
                of_d,
                of_d,
                preference,
                1,
                &mut best,
                &mut found,
            );
            lt::cublasLtMatmulPreferenceDestroy(preference);
            done(&format!("cublasLtMatmulAlgoGetHeuristic of {m} x {k} x {n}"), asked)?;
            if found == 0 {
                return Err(DeviceError(format!(
                    "cuBLASLt has no algorithm for a product of {m} x {k} x {n}"
                )));
            }
            Ok(Plan { product, layouts, algorithm: best.algo })
        }
    }
}

/// Of the library.
pub fn version() -> usize {
    // SAFETY: the library was found.
    #[allow(unsafe_code)]
    unsafe {
        lt::cublasLtGetVersion()
    }
}

fn done(call: &str, status: lt::cublasStatus_t) -> Result<(), DeviceError> {
    match status {
        lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        status => Err(DeviceError(format!("the card failed: {call}: {status:?}"))),
    }
}
