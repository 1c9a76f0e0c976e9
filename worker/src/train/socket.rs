//! Sockets between members: TCP, or, where both run on one machine, a Unix socket, which moves a long vector in about half the
//! time.
//!
//! Who listens at an address does so at the abstract name that is made of it, too. Such names are those of a network namespace:
//! what has one is on this machine, and sees the same addresses. It is only trusted if it runs as the same user.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

/// How long a connection may take to stand.
const DIAL: Duration = Duration::from_secs(1);

/// One end of a connection.
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Another handle of it.
    pub fn try_clone(&self) -> io::Result<Socket> {
        Ok(match self {
            Socket::Tcp(stream) => Socket::Tcp(stream.try_clone()?),
            Socket::Unix(stream) => Socket::Unix(stream.try_clone()?),
        })
    }

    /// Sends what is short at once, and gives up what is not taken for so long.
    pub fn prepare(&self, write: Duration) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(write))
            }
            Socket::Unix(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(write))
            }
        }
    }

    /// Whether there is something to read within this time, be it its end.
    ///
    /// # Errors
    /// Where it cannot be asked.
    pub fn is_readable(&self, patience: Duration) -> io::Result<bool> {
        let mut end = match self {
            Socket::Tcp(stream) => [PollFd::new(stream, PollFlags::IN)],
            Socket::Unix(stream) => [PollFd::new(stream, PollFlags::IN)],
        };
        match poll(&mut end, Some(&timespec(patience))) {
            // A signal to the process is none to the connection.
            Err(Errno::INTR) => Ok(false),
            ready => Ok(ready? != 0),
        }
    }

    /// Ends it for all handles.
    pub fn shutdown(&self) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Socket::Unix(stream) => stream.shutdown(Shutdown::Both),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(buffer),
            Socket::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(buffer),
            Socket::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() }
}

/// Where others connect.
pub struct Listener {
    tcp: TcpListener,
    unix: Option<UnixListener>,
}

impl Listener {
    /// Listens at the address that the others know, or everywhere where that is not an address of this machine.
    ///
    /// # Errors
    /// Where it cannot.
    pub fn bind(address: &str) -> io::Result<Listener> {
        let tcp = match TcpListener::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
                TcpListener::bind(("0.0.0.0", port.ok_or(error)?))
            }
            result => result,
        }?;
        tcp.set_nonblocking(true)?;
        // Who has the name beside the port of another one is no member; the others then use the port.
        let unix = name(address).and_then(|name| UnixListener::bind_addr(&name)).ok();
        if let Some(unix) = &unix {
            unix.set_nonblocking(true)?;
        }
        Ok(Listener { tcp, unix })
    }

    /// Who connects next, if somebody does within this time.
    ///
    /// # Errors
    /// Where nobody can for now.
    pub fn accept(&self, patience: Duration) -> io::Result<Option<Socket>> {
        let mut ends = vec![PollFd::new(&self.tcp, PollFlags::IN)];
        ends.extend(self.unix.as_ref().map(|unix| PollFd::new(unix, PollFlags::IN)));
        poll(&mut ends, Some(&timespec(patience)))?;
        let is_ready = |at: usize| ends.get(at).is_some_and(|end| !end.revents().is_empty());
        match &self.unix {
            Some(unix) if is_ready(1) => unix.accept().map(|(stream, _)| Some(Socket::Unix(stream))),
            _ if is_ready(0) => self.tcp.accept().map(|(stream, _)| Some(Socket::Tcp(stream))),
            _ => Ok(None),
        }
    }
}

/// Connects to who listens at an address.
///
/// # Errors
/// Where nobody does, or does not answer in time.
pub fn connect(address: &str) -> io::Result<Socket> {
    let near = name(address).and_then(|name| UnixStream::connect_addr(&name));
    if let Ok(stream) = near
        && socket_peercred(&stream)?.uid == rustix::process::geteuid()
    {
        return Ok(Socket::Unix(stream));
    }
    let mut targets = address.to_socket_addrs()?;
    let target = targets.next().ok_or_else(|| io::Error::other("the name has no address"))?;
    TcpStream::connect_timeout(&target, DIAL).map(Socket::Tcp)
}

fn name(address: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("aquifer-member/{address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_one_machine_need_no_network_and_others_do() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = Listener::bind(&port.to_string()).unwrap();
        let said = |address: &str| {
            let mut near = connect(address).unwrap();
            near.write_all(b"it is me").unwrap();
            let mut far = listener.accept(Duration::from_secs(5)).unwrap().expect("somebody connects");
            far.prepare(Duration::from_secs(5)).unwrap();
            let mut told = [0; 8];
            far.read_exact(&mut told).unwrap();
            assert_eq!(&told, b"it is me");
            matches!((near, far), (Socket::Unix(_), Socket::Unix(_)))
        };
        assert!(said(&port.to_string()));
        assert!(!said(&format!("localhost:{}", port.port())), "known by another name");
        assert!(listener.accept(Duration::ZERO).unwrap().is_none());
    }
}
