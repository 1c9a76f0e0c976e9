//! Spans for an OpenTelemetry collector: of calls, decisions and commits. They wait in a bounded queue that nobody waits for;
//! what finds no room is dropped and counted.

use std::net::SocketAddr;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor,
};
use prometheus::{IntCounter, Registry};

use crate::output::Failure;

/// Spans that wait for the collector, at most, and how many it gets at a time.
const QUEUE: usize = 8192;
const BATCH: usize = 512;
/// How often it gets them, and how long that may take.
const EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);
/// For so long the end of the program waits for the last ones.
const LAST: Duration = Duration::from_secs(1);

/// Exports spans for as long as it is kept.
pub struct Export(SdkTracerProvider);

impl Export {
    /// Begins to export to a collector; nothing is sent yet. Needs a runtime around it.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn begin(url: &str, listen: SocketAddr, registry: &Registry) -> Result<Export, Failure> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(url).with_timeout(PATIENCE).build();
        let exporter = exporter.map_err(|error| Failure::usage(format!("--otlp is {url:?}: {error}"), ""))?;
        let counted = |name, help| {
            let counter = IntCounter::new(name, help).expect("a name of the format");
            registry.register(Box::new(counter.clone())).expect("a name is used once");
            counter
        };
        let exporter = Counting {
            exporter,
            sent: counted("aquifer_spans_sent_total", "Spans that the collector has taken"),
            failed: counted("aquifer_spans_failed_total", "Spans that the collector did not take"),
        };
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(EVERY);
        let queue = BatchSpanProcessor::builder(exporter).with_batch_config(config.build()).build();
        let made = counted(
            "aquifer_spans_total",
            "Spans that ended; what was neither sent nor failed waits or was dropped",
        );
        let resource = Resource::builder_empty().with_service_name("aquifer-server").with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", listen.to_string()),
        ]);
        let provider = SdkTracerProvider::builder().with_span_processor(Made { queue, made });
        Ok(Export(provider.with_resource(resource.build()).build()))
    }

    /// What makes spans.
    pub fn tracer(&self) -> SdkTracer {
        self.0.tracer("aquifer")
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        _ = self.0.shutdown_with_timeout(LAST); // A collector that is away gets none.
    }
}

/// Counts what the collector does with spans.
#[derive(Debug)]
struct Counting {
    exporter: SpanExporter,
    sent: IntCounter,
    failed: IntCounter,
}

impl opentelemetry_sdk::trace::SpanExporter for Counting {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let exported = self.exporter.export(batch).await;
        let counter = if exported.is_ok() { &self.sent } else { &self.failed };
        counter.inc_by(spans);
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// Counts what is made.
#[derive(Debug)]
struct Made {
    queue: BatchSpanProcessor,
    made: IntCounter,
}

impl SpanProcessor for Made {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.queue.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        self.made.inc();
        self.queue.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.queue.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.queue.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.queue.set_resource(resource);
    }
}
