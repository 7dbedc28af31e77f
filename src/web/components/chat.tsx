import type { JSX } from "preact"
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks"

import { answerLast } from "../actions.ts"
import { lacksAnswer } from "../conversation.ts"
import { t } from "../language.ts"
import { current, currentGeneration } from "../state.ts"
import { EmptyState } from "./empty-state.tsx"
import { Icon } from "./icons.tsx"
import { MessageView } from "./message.tsx"

/** This close to the end counts as being at the end. */
const NEAR_END_PX = 24

/** The messages, following the end as it grows until the reader scrolls up, and again once they return to the end. */
export function Chat(): JSX.Element {
  const scroller = useRef<HTMLDivElement>(null)
  const content = useRef<HTMLDivElement>(null)
  const isFollowing = useRef(true)
  const [isAway, setAway] = useState(false)
  const conversation = current.value
  const count = conversation?.messages.length ?? 0

  const toEnd = (): void => {
    isFollowing.current = true
    setAway(false)
    const element = scroller.current
    if (element !== null) element.scrollTop = element.scrollHeight
  }

  useEffect(() => {
    const element = scroller.current
    const inner = content.current
    if (element === null || inner === null) return
    let lastTop = element.scrollTop
    const distance = (): number => element.scrollHeight - element.clientHeight - element.scrollTop
    const look = (): void => {
      if (element.scrollTop < lastTop - 1 && distance() > 1) isFollowing.current = false
      else if (distance() <= NEAR_END_PX && element.scrollTop >= lastTop) isFollowing.current = true
      lastTop = element.scrollTop
      setAway(!isFollowing.current && distance() > NEAR_END_PX * 4)
    }
    const onWheel = (event: WheelEvent): void => {
      if (event.deltaY < 0 && element.scrollTop > 0) isFollowing.current = false
    }
    const observer = new ResizeObserver(() => {
      // The reader may have scrolled in this very frame, before the event that tells of it.
      look()
      if (!isFollowing.current || current.peek() === undefined) return
      element.scrollTop = element.scrollHeight
      lastTop = element.scrollTop
    })
    element.addEventListener("scroll", look, { passive: true })
    element.addEventListener("wheel", onWheel, { passive: true })
    observer.observe(inner)
    observer.observe(element)
    return () => {
      element.removeEventListener("scroll", look)
      element.removeEventListener("wheel", onWheel)
      observer.disconnect()
    }
  }, [])

  // Another conversation, or a message sent: show the end. The empty state is read from its top.
  useLayoutEffect(() => {
    if (count > 0) toEnd()
    else {
      setAway(false)
      if (scroller.current !== null) scroller.current.scrollTop = 0
    }
  }, [conversation?.id, count])

  const isUnanswered =
    conversation !== undefined && lacksAnswer(conversation) && currentGeneration.value === undefined
  return (
    <div class="chat">
      <div class="scroller" ref={scroller}>
        <div class="column" ref={content}>
          {conversation === undefined ? (
            <EmptyState />
          ) : (
            <div class="messages" role="region" aria-label={t("conversation")}>
              {conversation.messages.map((message) => (
                <MessageView key={message.id} message={message} />
              ))}
              {isUnanswered && (
                <button type="button" class="button answer-now" onClick={answerLast}>
                  {t("answerThis")}
                </button>
              )}
            </div>
          )}
        </div>
      </div>
      {isAway && conversation !== undefined && (
        <button type="button" class="to-end" onClick={toEnd}>
          <Icon name="down" />
          {t("latest")}
        </button>
      )}
    </div>
  )
}
