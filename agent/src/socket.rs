//! Messages with descriptors, between an agent, its fork server and its supervisors. All three are on one machine, so
//! a message is a few bytes, and what it is about is handed over open.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// Descriptors of one message, at most.
const MAX_DESCRIPTORS: usize = 4;

/// Two ends that keep messages apart. No program that is started inherits one.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends a message.
pub fn send(socket: BorrowedFd, bytes: &[u8], descriptors: &[BorrowedFd]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let bytes = [IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Waits for a message: the number of its bytes, 0 at the end, and its descriptors.
pub fn receive(socket: BorrowedFd, bytes: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    receive_with(socket, bytes, RecvFlags::empty())
}

/// The same without waiting: `AGAIN` if there is no message yet.
pub fn receive_now(socket: BorrowedFd, bytes: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), Errno> {
    receive_with(socket, bytes, RecvFlags::DONTWAIT)
}

fn receive_with(
    socket: BorrowedFd,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> Result<(usize, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [IoSliceMut::new(bytes)];
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut bytes, &mut control, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut descriptors = Vec::with_capacity(MAX_DESCRIPTORS);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((received.bytes, descriptors))
}
