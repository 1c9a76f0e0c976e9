use aquifer_worker::bench::*;
use clap::Parser;
#[derive(Parser)]
struct A { what: String, #[command(flatten)] t: TrainArgs }
fn main() {
    let a = A::parse();
    let r = Roofline::measure();
    println!("{r:?}");
    let f = if a.what == "train" { train(&a.t) } else { kernels(a.t.precision, 8192) };
    for f in f { println!("{:45} {:10.1} {:10} {:?}", f.name, f.value, f.unit, f.share(&r).map(|x| (x * 100.0).round())); }
}
