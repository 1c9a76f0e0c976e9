//! Takes connections, no more at a time than there are places for.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;

/// Takes connections for ever. Each has one of the `places` until what is done with it is done.
pub async fn accept<Done>(socket: TcpListener, places: Arc<Semaphore>, begin: impl Fn(TcpStream) -> Done)
where
    Done: Future<Output = ()> + Send + 'static,
{
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let Ok((stream, _)) = socket.accept().await else {
            sleep(Duration::from_millis(100)).await; // Files may be short.
            continue;
        };
        let conversation = begin(stream);
        tokio::spawn(async move {
            conversation.await;
            drop(place);
        });
    }
}
